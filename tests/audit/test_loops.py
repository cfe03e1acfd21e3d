"""The loops that are told apart in a disassembly."""

import pytest

from tests.audit.loops import LOOPS, UNCLAMPED, sweeps


def listing(*instructions):
    """As cuobjdump prints it, of addresses 0, 16, ..."""
    return "\n".join(f"        /*{16 * i:04x}*/    {text} ;" for i, text in enumerate(instructions))


def loop_of(*body, before=2):
    return listing(*["MOV R1, R2"] * before, *body, f"@!P0 BRA 0x{16 * before:x}")


POWERS = ("LDS.128 R4, [R0]", *["FFMA R8, R4, R5, R6", "MUFU.EX2 R8, R8", "FADD R9, R9, R8"] * 4)


def test_instructions_of_a_class():
    found = sweeps(loop_of(*POWERS), 4, LOOPS)
    assert found == {"powers": {"instructions": 3.5, "alu": 0.0, "mufu": 1.0}}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("copy", ["LDGSTS.E.BYPASS.128 [R3], desc[UR6][R20.64]"]),
        ("extremes", ["LDS.128 R4, [R0]", *["FMNMX R1, R1, R4, !PT"] * 4]),
        ("extremes", ["LDS.128 R4, [R0]", *["FMNMX3 R1, R1, R4, R5, !PT"] * 2]),
        ("powers and total", [*POWERS, *["FADD R10, R10, R8"] * 4]),
        ("sums", ["LDS.128 R4, [R0]", *["FADD R8, R4, -R5"] * 12]),
        ("gradient", [*POWERS, "STG.E.128 desc[UR6][R2.64], R4"]),
        ("clamped gradient", [*POWERS, *["FSETP.GE.AND P1, PT, R4, R5, PT"] * 4, "STG.E.128 [R2]"]),
    ],
)
def test_each_is_told_by_its_instructions(name, body):
    assert list(sweeps(loop_of(*body), 4, LOOPS)) == [name]


def test_the_cheapest_of_a_kind_counts():
    dear = loop_of(*POWERS, "MOV R1, R2", before=0).splitlines()
    cheap = loop_of(*POWERS, before=len(dear)).splitlines()[len(dear) :]
    found = sweeps("\n".join([*dear, *cheap]), 4, LOOPS)
    assert found["powers"]["instructions"] == 3.5


def test_what_calls_is_left_out():
    assert not sweeps(loop_of("CALL.REL.NOINC 0x400", *POWERS), 4, LOOPS)


def test_only_what_is_expected():
    assert not sweeps(loop_of("LDS.128 R4, [R0]", *["FADD R8, R4, -R5"] * 12), 4, UNCLAMPED)
