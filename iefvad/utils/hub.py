"""Files of a repository on the Hugging Face hub, from its cache or fetched into it. Pickled files are never fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.utils.addresses import scrub
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import PICKLED
from iefvad.utils.text import few

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME of a repository."""


@dataclass
class Repository:
    """One revision of a repository. Create it with `open_repository`.

    Attributes:
        name: OWNER/NAME.
        revision: Branch, tag or commit as the user gave it. None is the main branch.
        names: Files of the repository, or those of them in the cache if the hub cannot be reached.
        online: Whether the hub answered.
        commit: Hash of the commit, known as soon as a file was fetched.
    """

    name: str
    revision: str | None
    names: frozenset[str]
    online: bool
    commit: str | None = field(default=None)

    @property
    def pickled(self) -> list[str]:
        """Names of the pickled files, sorted."""
        return sorted(name for name in self.names if Path(name).suffix.lower() in PICKLED)

    def fetch(self, file: str) -> Path:
        """Return the path of a file in the cache, after fetching it if it is missing there.

        A connection that breaks is made again, and the download continues where it stopped.

        Raises:
            UserError: The file cannot be fetched, or it could run code.
        """
        from huggingface_hub import hf_hub_download

        if not file.endswith((".safetensors", ".json")):
            raise UserError(f"{file} of {self.name} is not fetched: only safetensors and JSON files are.")
        try:
            revision = self.commit or self.revision
            path = Path(hf_hub_download(self.name, file, revision=revision, local_files_only=not self.online))
        except Exception as error:  # also the HTTP client's own, which differs between versions of huggingface_hub
            if isinstance(error, OSError) and error.errno:  # the disk
                raise
            raise UserError(
                f"{file} of {self.name} could not be fetched from the Hugging Face hub ({_first_line(error)}): run the"
                " same command again."
            ) from None
        self.commit = _commit_of(path) or self.commit
        return path


def open_repository(name: str, revision: str | None, files: Sequence[str], remedy: str) -> Repository:
    """Ask the hub which files a repository has. Without the hub, look for files in its cache.

    Args:
        name: OWNER/NAME.
        revision: Branch, tag or commit; None is the main branch.
        files: Names of files to look for in the cache if the hub cannot be reached.
        remedy: What else the user can do. It ends the error message.

    Raises:
        UserError: There is no such repository or revision, it is closed to this user, or the hub cannot be reached and
            the cache has none of the files.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not REPOSITORY.fullmatch(name):
        raise UserError(f"{name} is not the name of a repository on the Hugging Face hub: write OWNER/NAME.")
    at = f" at revision {revision}" if revision else ""
    cached = cached_files(name, revision, files)
    kinds = {Path(file).suffix for file in files}
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision) and kinds == {Path(file).suffix for file in cached}:
        return Repository(name, revision, cached, online=True)  # a commit does not change, so nobody is asked
    offline = constants.HF_HUB_OFFLINE
    try:
        info = None if offline else HfApi().model_info(name, revision=revision, timeout=10)
    except GatedRepoError:
        raise UserError(
            f"{name} on the Hugging Face hub wants its conditions accepted: accept them on its page, set HF_TOKEN, and"
            f" run the same command again; or {remedy}."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name} on the Hugging Face hub has no revision {revision}: check it, or {remedy}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face hub has no repository {name}, or it is private and needs HF_TOKEN: check the name, or"
            f" {remedy}."
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status < 500 or not cached:
            raise UserError(f"the Hugging Face hub refused {name} ({_first_line(error)}): {remedy}.") from None
        info = None
    except Exception:  # the HTTP client's own: no network
        info = None
    if info is not None:
        names = frozenset(entry.rfilename for entry in info.siblings or ())
        return Repository(name, revision, names, online=True)
    if not cached:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        raise UserError(
            f"{name}{at} is not in the cache of the Hugging Face hub, and {why}: run this once where there is a"
            f" network and copy the folder {folder} here, or {remedy}."
        )
    return Repository(name, revision, cached, online=False)


def cached_files(name: str, revision: str | None, files: Sequence[str]) -> frozenset[str]:
    """Return those of the files that the hub's cache has for this repository and revision."""
    from huggingface_hub import try_to_load_from_cache

    return frozenset(file for file in files if isinstance(try_to_load_from_cache(name, file, revision=revision), str))


def no_safetensors(repository: Repository, wanted: str, remedy: str) -> UserError:
    """Return the error for a repository without weights that may be read."""
    if not repository.online:
        return UserError(
            f"the cache of the Hugging Face hub has no safetensors weights of {repository.name}, and the hub cannot be"
            f" reached: run this once where there is a network, or {remedy}."
        )
    if repository.pickled:
        return UserError(
            f"{repository.name} has its weights as pickled files only ({few(repository.pickled)}), which can run code,"
            " so they are not fetched: download the file yourself if you trust it, convert it with"
            " `iefvad convert FILE FILE.safetensors`, and give the result."
        )
    return UserError(f"{repository.name} has no {wanted}: {remedy}.")


def answers(api: HfApi, name: str, revision: str | None) -> bool:
    """Return whether the hub can be reached. A download would retry for half a minute before it gives up.

    Raises:
        HfHubHTTPError, HFValidationError: The hub's own errors, such as for a model that does not exist.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api.model_info(name, revision=revision, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # the HTTP client's own, and that client differs between versions of huggingface_hub
        return False
    return True


def _commit_of(path: Path) -> str | None:
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _first_line(error: BaseException) -> str:
    return scrub((str(error).splitlines() or [type(error).__name__])[0]).strip().rstrip(".:")
