"""Corrects what Bochs lacks of AMX, in an unpacked copy of its sources.

python tests/amx/correct_bochs.py FOLDER, where FOLDER has Bochs' configure. Bochs was made for instructions: the states
that Linux saves for AMX do not work, and Linux does not offer AMX without the feature XFD. tdpbf16ps and AVX-512 stay
as they are. Ends with an error if the sources are others than those that this was written for.
"""

from __future__ import annotations

import sys
from pathlib import Path


def signed(name: str) -> tuple[str, str]:
    """Return a line that takes apart the four bytes of a number, and the same line for bytes with signs."""
    parts = [f"{name} & 0xff", f"({name} >> 8) & 0xff", f"({name} >> 16) & 0xff", f"{name} >> 24"]
    before = f"const Bit8u {name}byte[4] = {{ {', '.join(f'Bit8u({part})' for part in parts)} }};"
    return before, before.replace("Bit8u", "Bit8s")


# What is wrong, the file, a text in front of the place, and what is replaced there by what.
CHANGES = (
    ("tdpbssd takes its first bytes for unsigned", "cpu/avx/amx.cc", "Bit32u DPBDSS(", *signed("x")),
    ("tdpbssd takes its second bytes for unsigned", "cpu/avx/amx.cc", "Bit32u DPBDSS(", *signed("y")),
    ("vcvtne2ps2bf16 takes its upper half from behind its operand", "cpu/avx/avx512_bf16.cc", "::VCVTNE2PS2BF16_MASK",
     "op1.vmm32u(n)", "op1.vmm32u(n - DWORD_ELEMENTS(len))"),
    ("rows and bytes are exchanged in what is saved of the configuration", "cpu/xsave.cc", "",
     "tilecfg.vmm16u(8+n)    = BX_CPU_THIS_PTR amx->tilecfg[n].rows;\n"
     "      tilecfg.vmmubyte(48+n) = BX_CPU_THIS_PTR amx->tilecfg[n].bytes_per_row;",
     "tilecfg.vmm16u(8+n)    = BX_CPU_THIS_PTR amx->tilecfg[n].bytes_per_row;\n"
     "      tilecfg.vmmubyte(48+n) = BX_CPU_THIS_PTR amx->tilecfg[n].rows;"),
    ("8 of the 16 rows of a tile are saved", "cpu/xsave.cc", "::xsave_tiledata_state(",
     "row < BX_TILE_REGISTERS", "row < BX_TILE_MAX_ROWS"),
    ("8 of the 16 rows of a tile are restored", "cpu/xsave.cc", "::xrstor_tiledata_state(",
     "row < BX_TILE_REGISTERS", "row < BX_TILE_MAX_ROWS"),
    ("tiles in use are taken for unused", "cpu/xsave.cc", "::xsave_tiledata_state_xinuse(",
     "amx->tile_use_tracker == 0)", "amx->tile_use_tracker != 0)"),
    ("xrstor touches memory behind a compacted area without the last states", "cpu/xsave.cc", "tickle_read_virtual(",
     "requested_feature_bitmap, compaction", "compaction ? Bit32u(format) : requested_feature_bitmap, compaction"),
    # Proof that the instructions ran: Bochs prints this when it ends.
    ("executed instructions are not counted", "cpu/avx/amx.cc", "", '#include "amx.h"\n',
     '#include "amx.h"\nstatic struct Executed {\n  unsigned long long bf16 = 0, int8 = 0;\n'
     '  ~Executed() { fprintf(stderr, "executed: %llu tdpbf16ps, %llu tdpbssd\\n", bf16, int8); }\n} executed;\n'),
    ("tdpbf16ps is not counted", "cpu/avx/amx.cc", "::TDPBF16PS_TnnnTrmTreg(", "{\n", "{\n  executed.bf16++;\n"),
    ("tdpbssd is not counted", "cpu/avx/amx.cc", "::TDPBSSD_TnnnTrmTreg(", "{\n", "{\n  executed.int8++;\n"),
    # XFD: a register that says which states make an instruction fail (#NM) before its first use, and one that says why.
    ("XFD is missing: registers", "cpu/avx/amx.h", "struct AMX {",
     "AMX(): palette_id(0), start_row(0) {}", "AMX(): palette_id(0), start_row(0), tile_use_tracker(0) {}\n"
     "  Bit64u xfd = 0, xfd_error = 0;"),
    ("XFD is missing: descriptions", "cpu/msr.cc", "::init_MSRs()",
     "#if BX_SUPPORT_APIC\n",
     '  msr_desc[BX_MSR_IA32_XFD] = new MSR_Descriptor("IA32_XFD", BX_ISA_AMX, ~Bit64u(BX_XCR0_XTILEDATA_MASK));\n'
     '  msr_desc[BX_MSR_IA32_XFD_ERROR] = new MSR_Descriptor("IA32_XFD_ERR", BX_ISA_AMX);\n'
     "#if BX_SUPPORT_APIC\n"),
    ("XFD is missing: include", "cpu/msr.cc", "",
     '#include "msr.h"\n', '#include "msr.h"\n#include "avx/amx.h"\n'),
    ("XFD is missing: reading", "cpu/msr.cc", "",
     "    case BX_MSR_XSS:\n",
     "    case BX_MSR_IA32_XFD:\n      val64 = BX_CPU_THIS_PTR amx->xfd;\n      break;\n"
     "    case BX_MSR_IA32_XFD_ERROR:\n      val64 = BX_CPU_THIS_PTR amx->xfd_error;\n      break;\n"
     "    case BX_MSR_XSS:\n"),
    ("XFD is missing: writing", "cpu/msr.cc", "",
     "    case BX_MSR_XSS: // reserved",
     "    case BX_MSR_IA32_XFD:\n      BX_CPU_THIS_PTR amx->xfd = val_64;\n      break;\n"
     "    case BX_MSR_IA32_XFD_ERROR:\n      BX_CPU_THIS_PTR amx->xfd_error = val_64;\n      break;\n"
     "    case BX_MSR_XSS: // reserved"),
    ("XFD is missing: tiles", "cpu/avx/amx.cc", "::check_tile(bxInstruction_c *i, unsigned tile_num)",
     "{\n",
     "{\n  if (BX_CPU_THIS_PTR amx->xfd & BX_XCR0_XTILEDATA_MASK) {\n"
     "    BX_CPU_THIS_PTR amx->xfd_error |= BX_XCR0_XTILEDATA_MASK;\n"
     "    exception(BX_NM_EXCEPTION, 0);\n  }\n"),
    ("XFD is missing: tilezero", "cpu/avx/amx.cc", "::TILEZERO_Tnnn(",
     "  unsigned tile = i->dst();\n", "  unsigned tile = i->dst();\n  check_tile(i, tile);\n"),
    ("XFD is missing: CPUID", "cpu/cpuid.cc", "// EAX[4] - support for XFD",
     "leaf->eax = 0;\n", "leaf->eax = is_cpu_extension_supported(BX_ISA_AMX) ? 1<<4 : 0;\n"),
    ("XFD is missing: the state", "cpu/crregs.cc", "[xcr0_t::BX_XCR0_XTILEDATA_BIT].offset",
     ".attr   = BX_XSAVE_ALIGN64", ".attr   = BX_XSAVE_ALIGN64 | BX_XSAVE_XFD_SUPPORT"),
)  # fmt: skip


def main(folder: Path) -> None:
    """Make every change, or none."""
    texts: dict[Path, str] = {}
    for name, file, behind, before, after in CHANGES:
        path = folder / file
        text = texts.get(path) or path.read_text(encoding="latin-1")
        start = text.find(behind)
        at = text.find(before, max(start, 0))
        if start < 0 or at < 0:
            missing = before if start >= 0 else behind
            raise SystemExit(f"{name}: {path} lacks {missing!r}: use the commit that environment.sh names")
        texts[path] = text[:at] + after + text[at + len(before) :]
    for path, text in texts.items():
        path.write_text(text, encoding="latin-1")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
