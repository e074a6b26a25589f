"""`iefvad features`: import features into a packed store, export a store as .npy files, describe a store."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.cli.command import command, dispatch
from iefvad.data.config import ImportConfig
from iefvad.features.config import ExportConfig
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import readable

COMMANDS = {
    "import": ("iefvad.cli.features:import_main", "pack features into one store that training reads at memory speed"),
    "export": ("iefvad.cli.features:export_main", "write a store as .npy files in the field's layout"),
    "info": ("iefvad.cli.features:info_main", "describe what a store contains"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad features COMMAND ...` and return the exit status."""
    return dispatch("iefvad features", "Import, export and describe stored features.", COMMANDS, argv)


@command("features import", memory="use a smaller --max-segments")
def import_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad features import` and return the exit status."""
    parser = make_parser(
        "features import",
        "Pack the features of a benchmark into one memory-mapped store that training reads at memory speed. Features"
        " become float16, and long training clips are averaged once. The source is a store made by `iefvad extract`,"
        " lists of NAME__c.npy files, or two folders of .npy files without lists. After an interruption, run the same"
        " command to continue.",
        usage="[STORE] --out DIR [options]",
    )
    parser.add_argument("store", type=str, nargs="?", help="feature store made by `iefvad extract`", metavar="STORE")
    add_options(parser, ImportConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(ImportConfig, arguments)
    from iefvad.data.importing import import_features
    from iefvad.features.summary import describe_packed

    store = import_features(arguments.store, config)
    print(describe_packed(store))
    return 0


@command("features export")
def export_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad features export` and return the exit status."""
    parser = make_parser(
        "features export",
        "Write a feature store in the field's layout: for each crop c of a video rgb/NAME__c.npy and event/NAME__c.npy"
        " of shape (T, D).",
        usage="STORE --out DIR [options]",
    )
    parser.add_argument("store", type=str, help="feature store made by `iefvad extract`", metavar="STORE")
    add_options(parser, ExportConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(ExportConfig, arguments)
    from iefvad.features.npy_folders import export_features
    from iefvad.features.store import FeatureStore
    from iefvad.features.summary import incomplete_note

    print(f"{readable(config.out)}: {export_features(arguments.store, config)} clips, an image and an event file each")
    for note in incomplete_note(FeatureStore(arguments.store)):
        print(readable(note))
    return 0


@command("features info")
def info_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad features info` and return the exit status."""
    parser = make_parser("features info", "Describe what a feature store or a packed store contains.", usage="STORE")
    parser.add_argument("store", type=str, help="folder of the store", metavar="STORE")
    arguments = parser.parse_args(argv)
    from iefvad.features.summary import describe

    print(describe(arguments.store))
    return 0
