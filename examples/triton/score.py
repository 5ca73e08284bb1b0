"""Scores the segments of a video with a model server, without pyseg and torch.

    python examples/triton/score.py frames.npy --url http://localhost:8000

The file holds the features of the frames as bytes, (T, N). The server speaks the Open Inference
Protocol, as Triton does: `config.pbtxt` beside this file serves what `python -m pyseg.export
--format onnx` wrote.
"""

from __future__ import annotations

import argparse
import json
import urllib.request

import numpy as np


def cut(frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns segments (S, size, N) of frames (T, N), the last one padded, and their lengths (S,).

    >>> segments, lengths = cut(np.ones((7, 2), np.uint8), 5)
    >>> segments.shape, lengths.tolist()
    ((2, 5, 2), [5, 2])
    """
    count = -(-len(frames) // size)
    padded = np.zeros((count * size, frames.shape[1]), np.uint8)
    padded[: len(frames)] = frames
    lengths = np.full(count, size, np.int64)
    lengths[-1] -= len(padded) - len(frames)
    return padded.reshape(count, size, -1), lengths


def score(url: str, model: str, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the probabilities (S, C) of segments (S, size, N) with some lengths (S,)."""
    inputs = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": values.dtype.name.upper(),
            "data": values.ravel().tolist(),
        }
        for name, values in (("frames", segments), ("num_frames", lengths[:, None]))
    ]
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        [output] = json.load(response)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def main() -> None:
    """Prints the best class of every segment, by its number in class_names.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("frames", help="an .npy file of bytes, (T, N)")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", default="pyseg", help="its name in the model repository")
    parser.add_argument("--segment_size", type=int, default=5, help="as in features.json")
    args = parser.parse_args()
    segments, lengths = cut(np.load(args.frames), args.segment_size)
    found = score(args.url, args.model, segments, lengths)
    for number, row in enumerate(found):
        print(f"{number * args.segment_size}\t{row.max():.6f}\t{row.argmax()}")


if __name__ == "__main__":
    main()
