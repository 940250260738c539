# Serves a bundle on an NVIDIA GPU. From the repository's root:
#
#   docker build --file deploy/docker/cuda.Dockerfile --tag ldp-export:cuda .
#   docker build --file deploy/docker/cuda.Dockerfile --build-arg EXTRAS=serve,tensorrt-cu13 --tag ldp-export:trt .
#
# PyTorch's wheels bring CUDA's libraries; the driver is the host's, lent by NVIDIA's container toolkit. Not built, not
# run. See docs/guide/containers.md.
ARG BASE=debian:12.12-slim

FROM $BASE AS build
ARG TORCH=torch==2.13.0
# Another index of PyTorch's wheels, where the CUDA that pip's default brings is not the one that the extra needs.
ARG TORCH_INDEX=
ARG EXTRAS=serve,cuda
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ldp
RUN /opt/ldp/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY ldp_export ldp_export
COPY runtime runtime
COPY calibration calibration
RUN /opt/ldp/bin/pip install --no-cache-dir ".[$EXTRAS]" "$TORCH"

FROM $BASE
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin ldp
COPY --from=build /opt/ldp /opt/ldp
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LDP_DEVICE=cuda \
    LDP_HOST=0.0.0.0 \
    LDP_PORT=8000 \
    LDP_API_KEY_FILE=/run/secrets/ldp-keys \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 \
    CMD ["/opt/ldp/bin/python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"LDP_PORT\"]}/health', timeout=5)"]
ENTRYPOINT ["/opt/ldp/bin/ldp-export", "serve"]
CMD ["/bundle"]
