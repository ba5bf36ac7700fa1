"""How the tests compile: they compile far more than they compute.

Without LLVM's optimizations in three quarters of the time, and with XLA's older code generator for
fusions, which jaxlib has up to 0.10, in a half of that again; in a quarter less once more where a
program is one LLVM module, which that generator's are small enough for.
"""

from importlib.metadata import version

OLDER_GENERATOR = tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10)

OLDER_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

# For a program that is compiled as a user's is, among those that are not.
AS_USERS_HAVE_IT = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if OLDER_GENERATOR else {}),
}

# The environment, before JAX is imported; for the processes that tests start, too.
QUICKLY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    **({"XLA_FLAGS": " ".join(OLDER_FLAGS)} if OLDER_GENERATOR else {}),
}
