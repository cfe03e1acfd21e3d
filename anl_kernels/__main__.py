"""``python -m anl_kernels`` prints the environment report."""

from anl_kernels.report import env_report

print(env_report())
