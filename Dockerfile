# The server as an image: `docker build -t densenet .`, then `docker run -p 5000:5000 densenet`. See docs/container.md.

# Debian with its own Python 3.11: small, and both stages have the same one.
ARG BASE=debian:bookworm-20260824-slim

FROM ${BASE} AS python
# Python alone: TorchServe's Java comes with the requirements.
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

FROM python AS build
RUN apt-get update -qq && apt-get install -qq --no-install-recommends ca-certificates python3-venv
WORKDIR /app
# Where torch comes from. Empty: CPU builds from PyTorch's index if it answers, else PyPI's CUDA builds. An address (such
# as https://download.pytorch.org/whl/cpu, or …/cu130 for NVIDIA GPUs) or `pypi` takes that one or fails.
ARG TORCH_INDEX=""
ENV DENSENET_TORCH_INDEX=${TORCH_INDEX} PIP_NO_CACHE_DIR=1
# The set-up alone first: a change of the code doesn't install anything again.
COPY requirements.lock requirements-torch.lock ./
COPY scripts/__init__.py scripts/
COPY scripts/lib/__init__.py scripts/lib/console.py scripts/lib/environment.py scripts/lib/locking.py scripts/lib/paths.py scripts/lib/
# `no` leaves out the decoder of HEIC (libheif, LGPL); such pictures are then refused by their name.
ARG HEIF=yes
RUN python3 -m scripts.lib.environment \
    # nobody installs anything into an image, and nobody compiles against torch
    && rm -r .venv/lib/python3.11/site-packages/pip .venv/lib/python3.11/site-packages/pip-* \
        .venv/lib/python3.11/site-packages/torch/include \
    # nor with torch.compile: 0.9 GB, which CPU builds of torch don't bring
    && rm -rf .venv/lib/python3.11/site-packages/triton* \
    && if [ "${HEIF}" = no ]; then rm -r .venv/lib/python3.11/site-packages/*pi_heif*; fi
COPY . .
# What is served unless a container is told otherwise: --weights of build_archive.py.
ARG WEIGHTS=bundled
RUN DENSENET_NO_VENV=1 DENSENET_CACHE=/tmp/cache .venv/bin/python scripts/build_archive.py --weights "${WEIGHTS}" \
    # the record by which serve.py knows the archive; its owner alone may read it, and isn't who serves
    && install -m 644 /tmp/cache/archives.sha256 . \
    && DENSENET_NO_VENV=1 .venv/bin/python scripts/sbom.py --output sbom.json \
    && .venv/bin/python -m compileall -q scripts handler

FROM python
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="densenet" \
      org.opencontainers.image.description="DenseNet image classification on TorchServe" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin densenet
WORKDIR /app
COPY --from=build /app /app
# The only place that is written to is /tmp: state and logs, the unpacked archive, and models that are mounted.
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    DENSENET_NO_VENV=1 \
    DENSENET_WEIGHTS=/app/model_store/densenet.mar \
    DENSENET_MODEL_STORE=/tmp/densenet/model_store \
    DENSENET_RUN=/tmp/densenet/run \
    DENSENET_CACHE=/tmp/densenet/cache \
    DENSENET_LOG_SIZE="10 MB"
USER 10001:10001
# Inference; metrics where --metrics-host opens them. Management (5001) answers inside the container alone.
EXPOSE 5000 5002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=15s --start-period=120s --retries=3 CMD ["python3", "scripts/status.py"]
# The arguments of `docker run` are further flags of serve.py.
ENTRYPOINT ["python3", "scripts/serve.py", "--host", "0.0.0.0"]
