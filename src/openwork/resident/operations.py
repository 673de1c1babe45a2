"""What is computed on blocked numbers: a further kind of operation is one file and one line here.

Importing it loads the native module.
"""

from openwork.resident import elementwise as elementwise
from openwork.resident import native as native
from openwork.resident import norm as norm
from openwork.resident import pointwise as pointwise
from openwork.resident import pooling as pooling
