# The service on a CPU, with the versions of the lock:
#   docker build -t vlm-par . && docker run -p 8000:8000 -v /path/to/checkpoint:/model:ro vlm-par /model
# For the int8 file of `vlm-par export` add the extra export: --build-arg EXTRAS=serve,export
FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=serve
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt lock-py311.txt ./
COPY src ./src
# Of two builds of one version of torch pip takes the one with +cpu, which brings no CUDA.
RUN python -m venv /venv \
    && PIP_CONSTRAINT=lock-py311.txt PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
        /venv/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
RUN useradd --system --create-home --uid 10001 par
COPY --from=build /venv /venv
USER par
WORKDIR /home/par
ENV PATH=/venv/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"
STOPSIGNAL SIGTERM
# Options and the checkpoint come after the name of the image; without a checkpoint the embedded one answers.
ENTRYPOINT ["vlm-par", "serve", "--host", "0.0.0.0", "--port", "8000"]
