# Images of iefvad: `docker build --target cpu .` or `--target cuda .`. See docs/install.md.
ARG PYTHON=3.12

# A wheel with the C++ kernels. The instruction set is chosen when it is loaded, so it runs on every x86_64 or arm64.
FROM python:${PYTHON}-slim AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN IEF_KERNELS_FORCE_NATIVE=1 pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 IEFVAD_CACHE=/data/cache HF_HOME=/data/cache/huggingface MPLCONFIGDIR=/tmp/matplotlib
# libgomp: OpenMP of the C++ kernels; g++: torch.compile and triton compile at run time.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home iefvad && mkdir -p /data/runs /data/cache && chown -R iefvad /data
WORKDIR /data
ENTRYPOINT ["iefvad"]
CMD ["--help"]

FROM base AS cpu
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
RUN --mount=from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
USER iefvad

# torch brings CUDA's libraries, and the driver comes from the host (`docker run --gpus all`).
FROM base AS cuda
RUN --mount=from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
USER iefvad
