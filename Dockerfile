# unlearn-eval as a command:
#   docker build -t unlearn-eval .                                    CPU
#   docker build -t unlearn-eval --build-arg TORCH=cu128 .            CUDA; run it with --gpus all
#   docker run --rm -v "$PWD:/work" -v unlearn-eval-cache:/home/user/.cache unlearn-eval edit --forget facts --limit 5 --output my_edit
# What a command writes goes into the mounted folder. Nothing runs as root.
FROM python:3.12-slim-bookworm

ARG TORCH=cpu
WORKDIR /source
COPY . .
# PyTorch first and from its own index, so that a CPU image does not carry CUDA.
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "https://download.pytorch.org/whl/${TORCH}" "torch==2.13.0" \
    && pip install --no-cache-dir --constraint constraints.txt '.[report]' \
    && useradd --create-home --uid 1000 user && mkdir -p /work /home/user/.cache && chown user /work /home/user/.cache

USER 1000
WORKDIR /work
ENTRYPOINT ["unlearn-eval"]
CMD ["--help"]
