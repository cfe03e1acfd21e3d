"""Front doors of training frameworks; nothing else in the package imports these modules.

Each needs its framework, which the extra of the same name installs
(``pip install anl-kernels[transformers]``), and says so where it is missing:
:mod:`anl_kernels.integrations.transformers`, :mod:`anl_kernels.integrations.trl`,
:mod:`anl_kernels.integrations.lightning`.
"""
