# The image that launch/gke.sh runs:
#     docker build --build-arg EXTRA=tpu --tag IMAGE .
# EXTRA is tpu, cuda, cuda12 or cpu. The working directory holds configs/, as in a clone.
FROM python:3.12-slim

ARG EXTRA=tpu
WORKDIR /opt/can_jax
COPY . .
RUN python3 -m pip install --no-cache-dir --constraint constraints/py312.txt --editable ".[$EXTRA]"
ENTRYPOINT ["python3", "-m", "can_jax.main"]
