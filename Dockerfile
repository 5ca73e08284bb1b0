# pyseg's commands in a container:
#
#   docker build --target cpu -t pyseg . && docker run pyseg train --run /tmp/run
#   docker build --target cuda -t pyseg:cuda . && docker run --gpus all pyseg:cuda info

FROM python:3.12-slim-bookworm AS cpu_wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --torch-backend cpu torch==2.13.0 numpy build ninja setuptools
COPY . /source
WORKDIR /source
RUN python -m build --no-isolation --wheel --outdir /wheel

FROM python:3.12-slim-bookworm AS cpu
RUN --mount=type=bind,from=cpu_wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --torch-backend cpu torch==2.13.0 /wheel/*.whl \
    && useradd --create-home --uid 1000 pyseg
USER 1000
WORKDIR /home/pyseg
ENTRYPOINT ["pyseg"]

# The CUDA operators are compiled here, for TORCH_CUDA_ARCH_LIST, where the toolkit is; the image that
# runs them needs torch's own CUDA libraries alone.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS cuda_wheel
ARG TORCH_CUDA_ARCH_LIST="8.0 8.6 8.9 9.0 10.0+PTX"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --no-cache --python /venv/bin/python --torch-backend cu130 torch==2.13.0 numpy build ninja setuptools
COPY . /source
WORKDIR /source
RUN PYSEG_CUDA=1 python -m build --no-isolation --wheel --outdir /wheel

FROM python:3.12-slim-bookworm AS cuda
RUN --mount=type=bind,from=cuda_wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --torch-backend cu130 torch==2.13.0 /wheel/*.whl \
    && useradd --create-home --uid 1000 pyseg
USER 1000
WORKDIR /home/pyseg
ENTRYPOINT ["pyseg"]
