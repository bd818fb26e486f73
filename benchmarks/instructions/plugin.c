// A plug-in of qemu's user emulation (7.2 and newer) that counts an aarch64 program's executed instructions, by kind, and
// prints the counts so far whenever mark.c's instruction is executed. Debian has no package with qemu-plugin.h, so what
// is used of it is declared here: https://www.qemu.org/docs/master/devel/tcg-plugins.html
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };  // qemu_plugin_op
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* tb, int operation, void* counter, uint64_t value);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* tb, void (*callback)(unsigned, void*), int flags, void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* tb);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* tb, size_t index);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn* instruction);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum Kind { kMultiply, kLoad, kStore, kOther, kKinds };
static const char* const names[kKinds] = {"multiply", "load", "store", "other"};
static uint64_t counts[kKinds];
static const uint32_t kMark = 0xd503255f;  // hint #42

// Multiply-adds of vectors: encodings are those of the Arm Architecture Reference Manual, with the registers masked out.
static const struct {
  uint32_t mask, value;
} multiplies[] = {
    {0xbf00f400, 0x0f00e000},  // SDOT by element
    {0xbf20fc00, 0x0e009400},  // SDOT
    {0xffe0fc00, 0x4e80a400},  // SMMLA
    {0xbf80f400, 0x0f801000},  // FMLA by element
    {0xbfa0fc00, 0x0e20cc00},  // FMLA
    {0xbf20fc00, 0x0e208000},  // SMLAL
    {0xbf20fc00, 0x0e20c000},  // SMULL
};

static enum Kind kind_of(uint32_t code) {
  for (size_t i = 0; i < sizeof multiplies / sizeof *multiplies; i++)
    if ((code & multiplies[i].mask) == multiplies[i].value) return kMultiply;
  if ((code & 0x0a000000) == 0x08000000) return code & 1u << 22 ? kLoad : kStore;
  return kOther;
}

static void on_mark(unsigned cpu, void* data) {
  (void)cpu, (void)data;
  fprintf(stderr, "instructions");
  for (int kind = 0; kind < kKinds; kind++) fprintf(stderr, " %s=%" PRIu64, names[kind], counts[kind]);
  fprintf(stderr, "\n");
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  uint64_t found[kKinds] = {0};
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
    uint32_t code;
    memcpy(&code, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof code);
    found[kind_of(code)]++;
    if (code == kMark) qemu_plugin_register_vcpu_tb_exec_cb(tb, on_mark, 0, NULL);
  }
  for (int kind = 0; kind < kKinds; kind++)
    if (found[kind]) qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, &counts[kind], found[kind]);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc,
                                                               char** argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  return 0;
}
