"""The backbone youtube8m against independent formulas and, where files are named, its goldens."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn

from pyseg.backbones import YouTube8M, make_backbone
from pyseg.backbones.module import file_digest
from pyseg.backbones.youtube8m import files as youtube8m_files
from pyseg.backbones.youtube8m.frozen_graph import read_frozen_graph
from pyseg.backbones.youtube8m.inception import (
    _BLOCKS,
    Inception,
    Mixed,
    Pool,
    graph_names,
    prepare,
    resize,
)
from pyseg.backbones.youtube8m.projection import Projection, whitening
from pyseg.backbones.youtube8m.tensors import load, read_tensors
from pyseg.backbones.youtube8m.vggish import SAMPLES, VGGish, log_mel
from pyseg.data import FeatureSet
from pyseg.data.records.wire import encode_varint
from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.extract import extract_features, main

YOUTUBE8M = FeatureSet((("rgb", 1024), ("audio", 128)))


# Made-up files, small because a kernel's values are overlapping parts of a few


def _made_up(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Returns a state dict of random values that keep the scale of what they are applied to."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            strides = (1, 7, 3, 1)[: len(shape)]
            count = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
            values = rng.standard_normal(count) * (2 / tensor[0].numel()) ** 0.5
            state[name] = torch.tensor(values, dtype=torch.float32).as_strided(shape, strides)
        elif shape:
            values = rng.uniform(-0.1, 0.1, shape)
            if name.endswith(("bn.weight", "running_var")):
                values += 1
            state[name] = torch.tensor(values, dtype=torch.float32)
    return state


def _on_meta(make: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the backbone, made up."""
    folder = tmp_path_factory.mktemp("youtube8m")
    rng = np.random.default_rng(0)
    inception = _made_up(_on_meta(Inception), 1)
    inception["fc.weight"] = torch.zeros(1, 1).expand(1008, 2048)
    inception["fc.bias"] = torch.zeros(1008)
    torch.save(inception, folder / "pt_inception-2015-12-05-0.pth")
    np.save(folder / "mean.npy", rng.random((2048, 1)))
    np.save(folder / "eigenvals.npy", rng.random((2048, 1), np.float32) * 0.02)
    np.save(folder / "eigenvecs.npy", rng.standard_normal((1030, 2048), np.float32) / 45)
    torch.save(_made_up(_on_meta(VGGish), 2), folder / "vggish-0.pth")
    torch.save(
        {
            "pca_eigen_vectors": torch.from_numpy(rng.standard_normal((128, 128))),
            "pca_means": torch.from_numpy(rng.random(128)),
        },
        folder / "vggish_pca_params-0.pth",
    )
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> YouTube8M:
    made = make_backbone("youtube8m", str(folder))
    assert isinstance(made, YouTube8M)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two images: a gradient in red, and noise."""
    images = np.random.default_rng(3).integers(0, 256, (2, 48, 64, 3), np.uint8)
    images[0, :, :, 0] = np.linspace(0, 255, 64)
    images[0, :, :, 1:] = 0
    return images


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the files that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "files"))


# Images


def _slow_resize(image: np.ndarray, size: int) -> np.ndarray:
    """ResizeBilinear of TensorFlow 1, neither of corners nor of centers, a value at a time."""
    height, width, channels = image.shape
    result = np.empty((size, size, channels))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            for c in range(channels):
                total = 0.0
                for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                    for column, along in ((left, 1 - (x - left)), (left + 1, x - left)):
                        pixel = image[min(row, height - 1), min(column, width - 1), c]
                        total += down * along * float(pixel)
                result[i, j, c] = total
    return result


@pytest.mark.parametrize("shape", [(13, 29), (5, 3), (8, 8), (1, 40)])
def test_images_are_resized_as_tensorflow_1_does(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = resize(torch.from_numpy(image)[None], 8)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), _slow_resize(image, 8), atol=1e-3)


def test_a_resized_image_has_neither_half_pixels_nor_averages() -> None:
    steps = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 16, 1).expand(1, 16, 16, 1)
    assert resize(steps, 8)[0, 0, :, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_images_keep_red_first_and_their_edges() -> None:
    image = np.zeros((2, 20, 40, 3), np.uint8)
    image[1] = 255, 128, 0
    image[1, :, 0] = 64
    prepared = prepare(torch.from_numpy(image))
    assert prepared.shape == (2, 3, 299, 299)
    assert prepared[1, :, 150, 150].tolist() == [127 / 128, 0, -1]
    assert prepared[1, :, 0, 0].tolist() == [-0.5] * 3  # nothing is cropped


# Inception


def test_inception_is_the_published_one() -> None:
    network = _on_meta(Inception)
    assert sum(value.numel() for value in network.parameters()) == 21_785_568
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 94
    assert {norm.eps for norm in norms} == {1e-3}
    assert not network.training
    names = network.state_dict()
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    }.items():
        assert names[name].shape == shape


def test_blocks_have_the_published_sizes(backbone: YouTube8M, images: np.ndarray) -> None:
    sizes, maps = {}, {}

    def remember(name: str) -> None:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            sizes[name], maps[name] = tuple(output.shape[1:3]), output

        hooks.append(network.get_submodule(name).register_forward_hook(hook))

    network, hooks = backbone._inception, []
    for name, _ in network.named_children():
        remember(name)
    with torch.inference_mode():
        values = network(prepare(torch.from_numpy(images[:1])))
    for hook in hooks:
        hook.remove()
    assert list(sizes.values()) == [
        *[(32, 149), (32, 147), (64, 147), (80, 73), (192, 71)],
        *[(256, 35), (288, 35), (288, 35)],
        *[(768, 17)] * 5,
        *[(1280, 8), (2048, 8), (2048, 8)],
    ]
    assert values.shape == (1, 2048)
    assert values.min() >= 0
    np.testing.assert_allclose(values, maps["Mixed_7c"].double().mean((2, 3)), rtol=1e-4)


def test_padding_is_not_in_the_count_of_an_average() -> None:
    maps = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    found = Pool("average")(torch.from_numpy(maps)[None, None])[0, 0]
    box = np.ones((3, 3))
    total, count = (ndimage.convolve(x, box, mode="constant") for x in (maps, np.ones((7, 9))))
    np.testing.assert_allclose(found.numpy(), total / count, atol=1e-6)


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_5d", "Mixed_6b", "Mixed_6e", "Mixed_7b"])
def test_blocks_average_before_their_last_branch(name: str) -> None:
    block = Mixed(4, _BLOCKS[name]).eval()
    with torch.inference_mode():
        pooled = block(torch.ones(1, 4, 8, 8))[:, -block.branch_pool.conv.out_channels :]
    assert pooled.std() > 0
    np.testing.assert_allclose(pooled, pooled[:, :, 4:5, 4:5].expand_as(pooled), rtol=1e-5)


def test_the_last_block_pools_the_maximum() -> None:
    block = Mixed(4, _BLOCKS["Mixed_7c"]).eval()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    highest = ndimage.maximum_filter(x.numpy(), (1, 1, 3, 3), mode="constant", cval=-np.inf)
    with torch.inference_mode():
        found = block(x)[:, -192:]
        expected = block.branch_pool(torch.from_numpy(highest))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Projection


def test_values_are_projected_and_whitened() -> None:
    rng = np.random.default_rng(0)
    x, mean = rng.standard_normal((3, 16)), rng.standard_normal(16)
    vectors, variances = rng.standard_normal((16, 5)), np.array([0, 1e-5, 1e-4, 1e-2, 4])
    found = whitening(mean, vectors, variances)(torch.tensor(x, dtype=torch.float32))
    expected = (x - mean) @ vectors / np.sqrt(variances + 1e-4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_projections_are_read_as_the_published_code_reads_them(folder: Path) -> None:
    found = youtube8m_files.load_rgb_projection(youtube8m_files.find_files(folder))
    mean, values, vectors = (
        np.load(folder / f"{name}.npy") for name in ("mean", "eigenvals", "eigenvecs")
    )
    x = np.random.default_rng(1).random((2, 2048), np.float32)
    expected = (x - mean[:, 0]) @ vectors.T[:, :1024] / np.sqrt(values[:1024, 0] + 1e-4)
    np.testing.assert_allclose(found(torch.from_numpy(x)).numpy(), expected, rtol=1e-3, atol=1e-3)


# Bytes


def test_bytes_are_rounded_down() -> None:
    """As MediaPipe's QuantizeFloatVectorCalculator does, also at the values beside each step."""
    steps = (np.arange(256) * 4 / 255 - 2).astype(np.float32)
    beside = [np.nextafter(steps, np.float32(to)) for to in (-9, 9)]
    values = np.concatenate([steps, *beside, [-7, -2, 0, 2, 7]]).astype(np.float32)
    stored, clipped = FeatureSet((("rgb", len(values)),)).quantize(values[None])
    kept = np.clip(values, np.float32(-2), np.float32(2))
    expected = [int(float(value - np.float32(-2)) * 63.75) for value in kept]
    assert stored[0].tolist() == expected
    assert stored[0, -5:].tolist() == [0, 0, 127, 255, 255]
    assert clipped == int((np.abs(values) > 2).sum())


def test_bytes_have_no_bias() -> None:
    values = np.random.default_rng(0).uniform(-2, 2, (1000, 1152)).astype(np.float32)
    back = YOUTUBE8M.dequantize(YOUTUBE8M.quantize(values)[0])
    assert abs((back - values).mean()) < 1e-4  # rounding to the nearest byte gives 0.008


# Sound


def _slow_log_mel(samples: np.ndarray) -> np.ndarray:
    """Spectra of the definition of Fourier's transform, and bands bin by bin, in float64."""
    place = np.arange(400)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(257), place) / 512)
    hann = np.sin(np.pi * place / 400) ** 2
    mel = [1127 * np.log(1 + k * 16000 / 512 / 700) for k in range(257)]
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (125, 7500))
    spacing = (high - low) / 65
    rows = []
    for step in range(96):
        magnitude = np.abs(fourier @ (samples[160 * step : 160 * step + 400] * hann))
        bands = np.zeros(66)  # by the band on whose falling side a bin is; 0 is before the first
        for k in range(1, 257):
            if low < mel[k] < high:
                band = int((mel[k] - low) / spacing)
                rising = (mel[k] - low) / spacing - band
                bands[band] += (1 - rising) * magnitude[k]
                bands[band + 1] += rising * magnitude[k]
        rows.append(np.log(bands[1:65] + 0.01))
    return np.array(rows)


def test_spectra_follow_their_definition() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(SAMPLES) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 1000 * time) + 0.01 * rng.standard_normal(SAMPLES)
    windows = np.stack([tone, rng.uniform(-1, 1, SAMPLES)]).astype(np.float32)
    found = log_mel(windows)
    assert found.shape == (2, 96, 64)
    assert found.dtype == np.float32
    for row, samples in zip(found, windows, strict=True):
        np.testing.assert_allclose(row, _slow_log_mel(samples), atol=1e-5)
    assert log_mel(np.zeros((1, SAMPLES), np.float32)).max() == np.float32(np.log(0.01))


def test_sound_has_a_window_every_second(backbone: YouTube8M) -> None:
    assert backbone.audio is not None
    assert (backbone.audio.rate, backbone.audio.hop) == (16_000, 1.0)
    assert backbone.audio.samples == SAMPLES == 95 * 160 + 400


def test_vggish_is_the_published_one() -> None:
    network = _on_meta(VGGish)
    assert sum(value.numel() for value in network.parameters()) == 72_141_184
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == {
        **{
            f"features.{number}.{kind}": shape if kind == "weight" else shape[:1]
            for number, shape in {
                0: (64, 1, 3, 3),
                3: (128, 64, 3, 3),
                6: (256, 128, 3, 3),
                8: (256, 256, 3, 3),
                11: (512, 256, 3, 3),
                13: (512, 512, 3, 3),
            }.items()
            for kind in ("weight", "bias")
        },
        "embeddings.0.weight": (4096, 12288),
        "embeddings.0.bias": (4096,),
        "embeddings.2.weight": (4096, 4096),
        "embeddings.2.bias": (4096,),
        "embeddings.4.weight": (128, 4096),
        "embeddings.4.bias": (128,),
    }


def test_embeddings_come_before_the_last_relu_and_of_maps_in_tensorflows_order(
    backbone: YouTube8M,
) -> None:
    network = backbone._vggish
    spectra = torch.randn(1, 96, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    hook = network.embeddings[0].register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.inference_mode():
        embeddings = network(spectra)
        maps = network.features(spectra[:, None])[0]  # (channels, times, bands)
    hook.remove()
    assert embeddings.shape == (1, 128)
    assert embeddings.min() < 0 < embeddings.max()
    flat = seen[0][0][0]
    for channel, time, band in [(0, 0, 1), (5, 2, 3), (511, 5, 0)]:
        assert flat[(time * 4 + band) * 512 + channel] == maps[channel, time, band]


@pytest.mark.parametrize("kind", ["tensors", "arrays", "old arrays", "safetensors", "npz"])
def test_the_projection_of_sound_is_read_from_any_format(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors, means = rng.standard_normal((128, 128)), rng.standard_normal(128)
    arrays = {"pca_eigen_vectors": vectors, "pca_means": means}
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    path = tmp_path / f"vggish_pca_params.{kind if kind in ('safetensors', 'npz') else 'pth'}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "safetensors":
        save_file({name: value.float() for name, value in tensors.items()}, path)
    elif kind == "tensors":
        torch.save(tensors, path)
    else:
        torch.save(arrays, path, _use_new_zipfile_serialization=False)
        if kind == "old arrays":  # of NumPy 1
            path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
    x = rng.standard_normal((2, 128))
    found = youtube8m_files.load_audio_projection(path)(torch.tensor(x, dtype=torch.float32))
    expected = [vectors @ (row - means) for row in x]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


# The backbone


def test_features_are_those_of_the_formulas(
    backbone: YouTube8M, images: np.ndarray, folder: Path
) -> None:
    windows = np.random.default_rng(4).uniform(-1, 1, (2, SAMPLES)).astype(np.float32)
    found = backbone(images, windows)
    assert (found.shape, found.dtype) == ((2, 1152), np.float32)
    with torch.inference_mode():
        pooled = backbone._inception(prepare(torch.from_numpy(images))).double().numpy()
        embedded = backbone._vggish(torch.from_numpy(log_mel(windows))).double().numpy()
    mean, values, vectors = (
        np.load(folder / f"{name}.npy").astype(np.float64)
        for name in ("mean", "eigenvals", "eigenvecs")
    )
    rgb = (pooled - mean[:, 0]) @ vectors.T[:, :1024] / np.sqrt(values[:1024, 0] + 1e-4)
    np.testing.assert_allclose(found[:, :1024], rgb, rtol=1e-3, atol=1e-3)
    pca = {k: v.numpy() for k, v in read_tensors(folder / "vggish_pca_params-0.pth").items()}
    audio = (embedded - pca["pca_means"]) @ pca["pca_eigen_vectors"].T
    np.testing.assert_allclose(found[:, 1024:], audio, rtol=1e-3, atol=1e-3)
    assert np.abs(backbone(images[..., ::-1], windows) - found)[:, :1024].max() > 0.01  # not BGR


def test_the_backbone_says_what_it_is(backbone: YouTube8M) -> None:
    assert backbone.features == (("rgb", 1024), ("audio", 128))
    assert backbone.ranges == ((-2, 2), (-2, 2))
    assert backbone.size is None  # any: it resizes by itself
    described = backbone.description
    assert described.name == "youtube8m"
    assert len(described.sha256) == 64
    assert json.loads(json.dumps(described.preprocessing)) == described.preprocessing


def test_a_video_without_sound_has_the_mean_of_sound_and_not_zero_bytes(
    backbone: YouTube8M, images: np.ndarray
) -> None:
    stored, _ = YOUTUBE8M.quantize(backbone(images[:1], None))
    assert set(stored[0, 1024:].tolist()) == {127}
    assert np.abs(YOUTUBE8M.dequantize(stored)[0, 1024:]).max() < 1e-4


def test_there_is_no_audio_without_vggish(copied: Path, images: np.ndarray) -> None:
    whole = file_digest(*youtube8m_files.find_files(copied).paths)
    (copied / "vggish-0.pth").unlink()
    with pytest.raises(MissingFileError, match=r"expected a file vggish\*\.pth or .*, found none"):
        make_backbone("youtube8m", str(copied))
    (copied / "vggish_pca_params-0.pth").unlink()
    backbone = make_backbone("youtube8m", str(copied))
    assert backbone.features == (("rgb", 1024),)
    assert backbone.audio is None
    assert backbone.ranges == ((-2, 2),)
    assert "audio" not in backbone.preprocessing
    assert backbone(images[:1], None).shape == (1, 1024)
    assert backbone.sha256 != whole


def test_the_digest_is_of_every_file_and_of_no_name(copied: Path) -> None:
    whole = file_digest(*youtube8m_files.find_files(copied).paths)
    (copied / "vggish-0.pth").rename(copied / "vggish-renamed.pth")
    assert file_digest(*youtube8m_files.find_files(copied).paths) == whole
    for path in copied.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert file_digest(*youtube8m_files.find_files(copied).paths) != whole
        path.write_bytes(content)


def _write_video(path: Path, seconds: int, *, sound: bool) -> None:
    """Writes a video that is red, then green, then blue, a second each, with or without a tone."""
    av = pytest.importorskip("av")
    with av.open(path, "w") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="stereo") if sound else None
        for number in range(5 * seconds):
            image = np.zeros((48, 64, 3), np.uint8)
            image[:, :, number // 5 % 3] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            time = np.arange(44_100 * seconds) / 44_100
            tone = np.tile(np.float32(0.3 * np.sin(2 * np.pi * 440 * time)), (2, 1))
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="stereo")
            frame.rate = 44_100
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def test_videos_become_a_collection(
    folder: Path, backbone: YouTube8M, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_video(tmp_path / "a.mp4", 3, sound=True)
    _write_video(tmp_path / "b.mp4", 2, sound=False)
    out = tmp_path / "out"
    main(
        [
            *["--videos", str(tmp_path), "--backbone", "youtube8m", "--weights", str(folder)],
            *["--out", str(out), "--segment_seconds", "1", "--processes", "0"],
            *["--max_seconds", "2.5", "--device", "cpu"],
        ]
    )
    features = FeatureSet.read(out / "features.json")
    assert features.features == YOUTUBE8M.features
    assert features.ranges == YOUTUBE8M.ranges
    assert features.frame_seconds == 1
    assert features.backbone == backbone.description
    assert features.sampling is not None
    assert features.sampling.endswith("of the first 2.5 s")
    told = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [video["frames"] for video in told] == [3, 2]
    assert [video["duration"] for video in told] == [2.5, 2]

    stored = extract_features(tmp_path / "a.mp4", backbone, features)
    silent = extract_features(tmp_path / "b.mp4", backbone, features)
    assert (stored.shape, silent.shape) == ((3, 1152), (2, 1152))
    assert set(silent[:, 1024:].flat) == {127}
    assert len(set(stored[0, 1024:])) > 10
    colors = np.zeros((3, 48, 64, 3), np.uint8)
    for number in range(3):
        colors[number, :, :, number] = 255
    expected = YOUTUBE8M.dequantize(YOUTUBE8M.quantize(backbone(colors, None))[0])[:, :1024]
    found = YOUTUBE8M.dequantize(stored)[:, :1024]
    distances = np.linalg.norm(found[:, None] - expected[None], axis=-1)
    assert distances.argmin(1).tolist() == [0, 1, 2]  # red, green, blue


# What is refused


def test_files_are_asked_for(tmp_path: Path) -> None:
    for weights in (None, "random"):
        with pytest.raises(ArgumentError, match="weights: expected a folder with the files of you"):
            make_backbone("youtube8m", weights)
    with pytest.raises(
        ArgumentError, match=r"weights: expected a folder .*, found no folder at .*gone"
    ):
        make_backbone("youtube8m", str(tmp_path / "gone"))
    (tmp_path / "w.pth").touch()
    with pytest.raises(
        ArgumentError, match=r"weights: expected a folder .*, found a file at .*w\.pth"
    ):
        make_backbone("youtube8m", str(tmp_path / "w.pth"))
    with pytest.raises(ArgumentError, match="backbone: expected youtube8m, found 'youtube8m:x'"):
        make_backbone("youtube8m:x", str(tmp_path))


@pytest.mark.parametrize(
    "name", ["pt_inception-2015-12-05-0.pth", "mean.npy", "eigenvals.npy", "eigenvecs.npy"]
)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(MissingFileError, match=f"{copied}: expected a file .*, found none"):
        make_backbone("youtube8m", str(copied))


def test_one_file_for_each_use(copied: Path) -> None:
    (copied / "classify_image_graph_def.pb").touch()
    with pytest.raises(ArgumentError, match=r"one file of inception in .*, found classify_image_"):
        make_backbone("youtube8m", str(copied))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fc.weight": torch.zeros(1, 1).expand(1000, 2048)},  # torchvision's
            r"fc\.weight: expected shape \(1008, 2048\), .*, found \(1000, 2048\)",
        ),
        ({"fc.weight": None}, r"fc\.weight: expected shape \(1008, 2048\), .*, found none"),
        (
            {"Conv2d_1a_3x3.bn.bias": None},
            r"expected the tensor Conv2d_1a_3x3\.bn\.bias, found none of this name",
        ),
        (
            {"Conv2d_1a_3x3.bn.bias": torch.zeros(3)},
            r"Conv2d_1a_3x3\.bn\.bias: expected shape \(32,\), found \(3,\)",
        ),
        (
            {"Conv2d_1a_3x3.bn.bias": torch.full((32,), torch.nan)},
            r"Conv2d_1a_3x3\.bn\.bias: expected finite numbers",
        ),
    ],
)
def test_other_weights_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    state = read_tensors(folder / "pt_inception-2015-12-05-0.pth") | changes
    path = tmp_path / "inception.pth"
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    with pytest.raises(DataError, match=message):
        youtube8m_files.load_inception(path)


def test_other_matrices_are_refused(copied: Path) -> None:
    files = youtube8m_files.find_files(copied)
    for path, array, message in [
        (files.mean, np.zeros(2048), r"mean\.npy: expected shape \(2048, 1\) or more"),
        (files.mean, np.zeros((4096, 1)), r"mean\.npy: expected 2048 values here .* found 4096"),
        (files.eigenvals, np.full((1024, 1), -1.0), r"eigenvals\.npy: expected values >= 0"),
        (files.eigenvals, np.full((1024, 1), np.inf), r"eigenvals\.npy: expected finite numbers"),
        (files.eigenvecs, np.zeros((2048, 1024)), r"eigenvecs\.npy: expected shape \(1024, 2048\)"),
    ]:
        content = path.read_bytes()
        np.save(path, array)
        with pytest.raises(DataError, match=message):
            youtube8m_files.load_rgb_projection(files)
        path.write_bytes(content)
    assert files.vggish_pca is not None
    for changes, message in [
        ({"pca_means": None}, "expected the tensor pca_means, found none"),
        ({"pca_means": torch.zeros(127)}, r"pca_means: expected shape \(128,\), found \(127,\)"),
        ({"pca_means": torch.tensor(1.0)}, r"pca_means: expected shape \(128,\), found \(\)"),
        ({"pca_means": torch.full((128,), torch.inf)}, "pca_means: expected finite numbers"),
    ]:
        state = {"pca_eigen_vectors": torch.eye(128)} | changes
        torch.save(state, files.vggish_pca)
        with pytest.raises(DataError, match=message):
            youtube8m_files.load_audio_projection(files.vggish_pca)


class _Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    path = tmp_path / "w.pth"
    for write in (
        lambda: torch.save({"a": _Attack(evidence)}, path),
        lambda: torch.save({"a": _Attack(evidence)}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(_Attack(evidence))),
        lambda: torch.save({"a": np.array([_Attack(evidence)], object)}, path),
    ):
        write()
        with pytest.raises(DataError, match=r"w\.pth: expected a state dict, found: "):
            read_tensors(path)
    assert not evidence.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no weights at all"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: expected "):
        read_tensors(tmp_path / name)


def test_only_ordinary_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(
        {
            "a": nn.Parameter(torch.ones(2)),
            "sparse": torch.ones(2).to_sparse(),
            "meta": torch.ones(2, device="meta"),
            "text": "x",
            "big endian": np.ones(2, ">f4"),
        },
        path,
    )
    found = read_tensors(path)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [1, 1],
        "big endian": [1, 1],
    }
    layer = nn.BatchNorm2d(2)
    with pytest.raises(DataError, match=r"w\.pth: expected the tensor weight, found none"):
        load(layer, found, "w.pth")
    torch.save([1], path)
    with pytest.raises(DataError, match=r"w\.pth: expected named tensors, found list"):
        read_tensors(path)


# The published graph


def _field(number: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return encode_varint(number << 3) + encode_varint(value)


def _constant(name: str, values: np.ndarray, form: str) -> bytes:
    """Returns a node of a GraphDef, its values in one of three forms."""
    shape = b"".join(_field(2, _number(1, size)) for size in values.shape)
    tensor = _number(1, 1) + _field(2, shape)
    if form == "content":
        tensor += _field(4, values.astype("<f4").tobytes())
    elif form == "packed":
        tensor += _field(5, values.astype("<f4").tobytes())
    else:  # one value for all
        tensor += encode_varint(5 << 3 | 5) + struct.pack("<f", values.flat[0])
    kind = _field(5, _field(1, b"dtype") + _field(2, _number(6, 1)))
    value = _field(5, _field(1, b"value") + _field(2, _field(8, tensor)))
    return _field(1, _field(1, name.encode()) + _field(2, b"Const") + kind + value)


def _graph(changes: dict[str, np.ndarray | None]) -> bytes:
    """Returns a graph with made-up weights: a kernel's are all its number in `graph_names`."""
    network = _on_meta(Inception)
    constants: dict[str, np.ndarray | None] = {
        "Sub/y": np.float32([128])[0].reshape(()),
        "Mul/y": np.float32([1 / 128])[0].reshape(()),
        "softmax/weights": np.broadcast_to(np.float32(0), (2048, 1008)),
    }
    for number, (module, scope) in enumerate(graph_names()):
        layer = network.get_submodule(module)
        out, into, height, width = layer.conv.weight.shape
        shape = (height, width, into, out)
        constants[f"{scope}/conv2d_params"] = np.broadcast_to(np.float32(number), shape)
        for place, part in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
            constants[f"{scope}/batchnorm/{part}"] = np.full(out, number + place / 4, np.float32)
    nodes = [_field(1, _field(1, b"DecodeJpeg") + _field(2, b"DecodeJpeg")), _number(7, 3)]
    for number, (name, values) in enumerate((constants | changes).items()):
        if values is not None:
            small = ("content", "packed")[number % 2]
            nodes.append(_constant(name, values, small if len(set(values.flat[:9])) > 1 else "one"))
    return b"".join(nodes)


def test_weights_are_read_from_the_published_graph(tmp_path: Path) -> None:
    path = tmp_path / "classify_image_graph_def.pb"
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 32)).astype(np.float32)
    gamma = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    path.write_bytes(_graph({"conv/conv2d_params": kernel, "conv/batchnorm/gamma": gamma}))
    network = youtube8m_files.load_inception(path)
    first = network.Conv2d_1a_3x3
    np.testing.assert_array_equal(first.conv.weight.numpy(), kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(first.bn.weight.numpy(), gamma)
    for number, (module, _) in enumerate(list(graph_names())[1:], 1):
        layer = network.get_submodule(module)
        tensors = [layer.bn.weight, layer.bn.bias, layer.bn.running_mean, layer.bn.running_var]
        assert layer.conv.weight.unique().tolist() == [number]
        assert [value.unique().item() for value in tensors] == [number + i / 4 for i in range(4)]


def test_the_published_graphs_names() -> None:
    names = dict(graph_names())
    assert len(set(names.values())) == len(names) == 94
    for module, scope in {
        "Conv2d_1a_3x3": "conv",
        "Conv2d_4a_3x3": "conv_4",
        "Mixed_5b.branch1x1": "mixed/conv",
        "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
        "Mixed_5c.branch3x3dbl_3": "mixed_1/tower_1/conv_2",
        "Mixed_6a.branch3x3": "mixed_3/conv",
        "Mixed_6a.branch3x3dbl_1": "mixed_3/tower/conv",
        "Mixed_6b.branch7x7dbl_5": "mixed_4/tower_1/conv_4",
        "Mixed_7a.branch3x3_2": "mixed_8/tower/conv_1",
        "Mixed_7a.branch7x7x3_1": "mixed_8/tower_1/conv",
        "Mixed_7b.branch3x3_2b": "mixed_9/tower/mixed/conv_1",
        "Mixed_7c.branch3x3dbl_2": "mixed_10/tower_1/conv_1",
        "Mixed_7c.branch3x3dbl_3a": "mixed_10/tower_1/mixed/conv",
        "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
    }.items():
        assert names[module] == scope


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classify_image_graph_def.pb"
    huge = _constant("a", np.broadcast_to(np.float32(1), (1 << 30, 1 << 30)), "one")
    for content, message in [
        (b"", "found one without its constant 'conv/conv2d_params'"),
        (b"\xff" * 30, "expected a TensorFlow graph, found: malformed protobuf"),
        (huge, "expected a TensorFlow graph, found: a tensor of shape"),
        (_graph({})[:-1], "expected a TensorFlow graph, found: malformed protobuf"),
        (_graph({"mixed_10/conv/batchnorm/beta": None}), "without its constant 'mixed_10/conv/"),
        (_graph({"Mul/y": np.float32(2).reshape(())}), "expected images scaled by"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_frozen_graph(path)
    path.write_bytes(_graph({"conv/conv2d_params": np.zeros(5, np.float32)}))
    with pytest.raises(DataError, match=r"Conv2d_1a_3x3\.conv\.weight: expected shape"):
        youtube8m_files.load_inception(path)


# Goldens of the public extractor


@pytest.fixture
def goldens(shared: Path) -> Path:
    folder = shared / "goldens" / "youtube8m_features"
    if not folder.is_dir():
        pytest.skip(f"no golden features at {folder}")
    return folder


@pytest.fixture
def named(request: pytest.FixtureRequest) -> Path:
    """The file or folder that an environment variable names."""
    if not (path := os.environ.get(request.param)):
        pytest.skip(f"no published weights: set {request.param}")
    return Path(path)


@pytest.mark.parametrize("named", ["PYSEG_INCEPTION"], indirect=True)
def test_inception_gives_the_published_values(named: Path, goldens: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(goldens / "AO7u7fwGzJQ_at_second_0.jpg") as file:
        pixels = torch.from_numpy(np.array(file.convert("RGB")))[None]
    with torch.inference_mode():
        found = youtube8m_files.load_inception(named)(prepare(pixels))[0].numpy()
    expected = json.loads((goldens / "AO7u7fwGzJQ_pool_3.json").read_text())
    # JPEG decoders differ in the last bits of a pixel.
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.corrcoef(found, expected)[0, 1] > 0.9995


@pytest.mark.parametrize("named", ["PYSEG_YT8M_PCA"], indirect=True)
def test_the_projection_gives_the_published_values(named: Path, goldens: Path) -> None:
    arrays = np.load(goldens / "sports1m_frame.npz")
    files = youtube8m_files.Files(
        named, named / "mean.npy", named / "eigenvals.npy", named / "eigenvecs.npy", None, None
    )
    projection = youtube8m_files.load_rgb_projection(files)
    found = projection(torch.tensor(arrays["original"], dtype=torch.float32)[None])[0]
    np.testing.assert_allclose(found.numpy(), arrays["pca"], atol=1e-3)


@pytest.mark.parametrize("named", ["PYSEG_VGGISH"], indirect=True)
def test_the_published_weights_of_vggish_are_read(named: Path) -> None:
    """The folder holds both files; of silence, every window has the same embedding."""
    (weights,) = set(named.glob("vggish*.pth")) - set(named.glob("vggish_pca_params*"))
    (pca,) = named.glob("vggish_pca_params*")
    silence = torch.from_numpy(log_mel(np.zeros((2, SAMPLES), np.float32)))
    with torch.inference_mode():
        embeddings = youtube8m_files.load_vggish(weights)(silence)
    values = youtube8m_files.load_audio_projection(pca)(embeddings)
    assert values.isfinite().all()
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-4)


def test_projection_holds_what_it_was_given() -> None:
    projection = Projection([1, 2], np.eye(2), [1, 4])
    assert projection(torch.tensor([[2.0, 6.0]])).tolist() == [[1, 1]]
