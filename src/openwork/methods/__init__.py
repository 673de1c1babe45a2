"""What is worth keeping.  A new method is one file here plus one line below."""

from openwork.methods.base import Layer, Method
from openwork.methods.cs_training import CSTraining
from openwork.methods.drop_grow import DropGrow
from openwork.methods.dsb import DSB
from openwork.methods.gse import GSE
from openwork.methods.mest import MEST
from openwork.methods.rigl import RigL
from openwork.methods.set import SET
from openwork.methods.static import Static

__all__ = ["DSB", "GSE", "MEST", "SET", "CSTraining", "DropGrow", "Layer", "Method", "RigL", "Static"]
