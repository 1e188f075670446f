"""Files: checked headers, tensors read on demand, whole-or-nothing writing."""

from .dtypes import FLOATS, SMALLEST_STEP, UNIT_ROUNDOFF, WRITABLE, cast, cast_into, compute_dtype, numpy_dtype, wider
from .header import ITEM_BITS, Entry, Header
from .spool import Spool, Spooled
from .tensors import Tensor, TensorFile
from .writing import TensorWriter, write_folder_file

__all__ = [
    "FLOATS", "ITEM_BITS", "SMALLEST_STEP", "UNIT_ROUNDOFF", "WRITABLE", "Entry", "Header", "Spool", "Spooled",
    "Tensor", "TensorFile", "TensorWriter", "cast", "cast_into", "compute_dtype", "numpy_dtype", "wider",
    "write_folder_file",
]  # fmt: skip
