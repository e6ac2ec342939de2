"""Reading the tensors in a TorchScript archive without running any code in it.

`torch.jit.load` compiles the archive's code and runs its `__setstate__` methods, which may read and
write files. OpenAI publishes CLIP's weights in this form only, but the code is not needed. An
archive is a ZIP file in which `data.pkl` describes nested module objects, and `data/<key>` has the
bytes of a tensor storage. So an unpickler that knows a few constructors, and refuses all other
names, can read the parameters.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocklora.errors import UserError


class _Module:
    """A stand-in for a scripted module; unpickling puts the attributes into its `__dict__`."""


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """Return a view of a storage, as `torch._utils._rebuild_tensor_v2` does."""
    return storage.as_strided(size, stride, offset)


def _same(value: Any, *_: Any) -> Any:
    """Return the first argument, to which these functions only add a type."""
    return value


# All names that an archive may use besides its own modules.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "BoolStorage"): torch.bool,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.jit._pickle", "build_intlist"): _same,
    ("torch.jit._pickle", "build_doublelist"): _same,
    ("torch.jit._pickle", "build_boollist"): _same,
    ("torch.jit._pickle", "build_tensorlist"): _same,
    ("torch.jit._pickle", "restore_type_tag"): _same,
    ("collections", "OrderedDict"): OrderedDict,
}


def _read_stored(archive: zipfile.ZipFile, name: str) -> bytearray:
    """Return a member's bytes, after `ZipFile` has verified the checksum.

    torch never compresses data, so a compressed member can only be an attempt to fill the memory.
    """
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return bytearray(archive.read(name))


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(_read_stored(archive, f"{root}/data.pkl")))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Module
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> Tensor:
        """Return the one-dimensional tensor of a storage `("storage", dtype, key, device, n)`."""
        _, dtype, key, _, length = pid
        if key not in self._storages:
            data = _read_stored(self._archive, f"{self._root}/data/{key}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype, count=length)
        return self._storages[key]


def is_torchscript(path: str | Path) -> bool:
    """Return whether the file is a TorchScript archive, as opposed to one of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:  # not a zip file, or a damaged one
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Return the parameters and buffers in a TorchScript archive by their dotted names.

    Tensors are on the CPU and keep their dtype. All other attributes of modules are left out.

    Raises:
        UserError: The archive is damaged, has a compressed member, or refers to a name that is not
            allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (described,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            module = _ArchiveUnpickler(archive, described.removesuffix("/data.pkl")).load()
        return _tensors(module)
    except Exception as error:  # a hostile pickle can raise anything
        raise UserError(
            f"{path}: not a readable TorchScript archive ({error}); "
            "fetch it again or use another checkpoint"
        ) from None


def _tensors(module: _Module, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, _Module):
            found.update(_tensors(value, f"{prefix}{name}."))
    return found
