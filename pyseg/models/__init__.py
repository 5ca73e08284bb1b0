"""Named presets: the classifiers of the paper and registered ones, to create, save and load.

`register` adds a classifier, `register_head` a head. A saved model is a folder with
``model.safetensors`` (weights and buffers) and ``model.json`` (the arguments of `create`).
Nothing in it is pickled, and a digest of both detects damage.

``python -m pyseg.models`` prints a table of the presets.

Example:
    >>> import tempfile
    >>> import torch
    >>> model = create("nextvlad-small", num_classes=10, feature_sizes=(64, 16)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, folder, class_names=[f"class {i}" for i in range(10)])
    ...     loaded = load(folder)
    >>> frames = torch.randint(0, 256, (2, 5, 80), dtype=torch.uint8)
    >>> torch.equal(model(frames, torch.tensor([5, 3])), loaded(frames, torch.tensor([5, 3])))
    True
    >>> loaded.config.name, loaded.config.class_names[3]
    ('nextvlad-small', 'class 3')
"""

from pyseg.models import presets as presets
from pyseg.models.files import CONFIG, FORMAT_VERSION, WEIGHTS, load, save
from pyseg.models.registry import (
    ModelConfig,
    Shapes,
    count_parameters,
    create,
    names,
    options,
    register,
    register_head,
    select_classes,
    training_defaults,
)

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "WEIGHTS",
    "ModelConfig",
    "Shapes",
    "count_parameters",
    "create",
    "load",
    "names",
    "options",
    "register",
    "register_head",
    "save",
    "select_classes",
    "training_defaults",
]
