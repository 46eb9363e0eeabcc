/* decode/spans.py in C, the same spans for a tenth of the CPU (docs/decisions/011): this file reads which attributes have
 * columns; each function has a file of its own.
 */
#include "decoder.h"

static const char *const WHERE[DECODER_HELD][2] = {
    {"stagetrace.otlp.decode.spans", "row_or_reason"},
    {"stagetrace.otlp.decode.columns", "NAMES"},
    {"stagetrace.otlp.decode.columns", "KEYS"},
};

static const unsigned char FIXED_KINDS[FIXED] = {BINARY, BINARY, BINARY, STRING, INT32, INT32, INT, INT, INT};

/* Put a key in its place by size, before longer ones. */
static int read_key(State *state, PyObject *pair, int at) {
    const char *text;
    Py_ssize_t size;
    int tag;
    if (!PyArg_ParseTuple(pair, "y#i", &text, &size, &tag)) return -1;
    if (size > MAX_KEY) return fail(PyExc_ValueError, "a key without room");
    state->kinds[FIXED + at] = (unsigned char)tag;
    Key key = {.size = (unsigned char)size, .column = (unsigned char)(FIXED + at)};
    memcpy(key.text, text, (size_t)size);
    for (; at > 0 && state->keys[at - 1].size > size; at--) state->keys[at] = state->keys[at - 1];
    state->keys[at] = key;
    return 0;
}

/* Read KEYS: of each column for an attribute, in their order, the serialized key and the tag of its type. */
static int fill(PyObject *module) {
    State *state = decoder_state(module);
    if (import_all(state->held, WHERE, DECODER_HELD) < 0) return -1;
    Py_ssize_t keyed = PyTuple_Size(state->held[KEYS]), named = PyTuple_Size(state->held[NAMES]);
    if (keyed < 0 || named < 0) return -1;
    if (named > MAX_COLUMNS || named != FIXED + keyed + 2) return fail(PyExc_ValueError, "columns without room");
    state->keyed = (int)keyed;
    memcpy(state->kinds, FIXED_KINDS, FIXED);
    for (int i = 0; i < state->keyed; i++)
        if (read_key(state, PyTuple_GetItem(state->held[KEYS], i), i) < 0) return -1;
    state->kinds[OTHER(state)] = DOUBLE;
    state->kinds[REST(state)] = BINARY;
    for (int size = 0, i = 0; size < MAX_KEY + 2; size++) {
        while (i < state->keyed && state->keys[i].size < size) i++;
        state->first[size] = (unsigned char)i;
    }
    return 0;
}

static PyMethodDef functions[] = {
    {"decode_parts", (PyCFunction)(void (*)(void))decode_parts, METH_FASTCALL, "decode_parts(data, at, end, most, tag)"},
    {"open_log", open_log, METH_NOARGS, "Return a log without a span."},
    {"add_spans", (PyCFunction)(void (*)(void))add_spans, METH_FASTCALL, "add_spans(log, data, held, most, latest)"},
    {"join_logs", join_logs, METH_O, "join_logs(logs)"},
    {"find_attribute", (PyCFunction)(void (*)(void))find_attribute, METH_FASTCALL, "find_attribute(data, offsets, key)"},
    {NULL, NULL, 0, NULL},
};

const Group decoder_group = {"decoder", functions, fill};
