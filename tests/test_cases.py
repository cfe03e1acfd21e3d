from anl_kernels.backends.choice import extension
from anl_kernels.terms import REGISTRY
from anl_kernels.terms.probes import PROBES
from tests.cases import TERMS
from tests.formulas import FORMULAS

FUNCTORS = {term.functor for term in (*TERMS.values(), *PROBES.values())}


def test_every_registered_term_has_a_case():
    assert {type(term).__name__ for term in TERMS.values()} == set(REGISTRY)


def test_every_registered_term_has_a_formula():
    assert set(FORMULAS) == set(REGISTRY)


def test_every_functor_of_triton_has_a_case():
    functors = __import__("anl_kernels.backends.triton.terms", fromlist=["FUNCTORS"]).FUNCTORS
    assert set(functors) == FUNCTORS


def test_every_functor_of_the_extension_has_a_case():
    functors = extension("cpu").functor_names()
    assert set(functors) == FUNCTORS
