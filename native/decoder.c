/* The reference's spans.py in C, the same spans for a tenth of the CPU (docs/decisions/011): this file reads which
 * attributes have columns; each function has a file of its own.
 */
#include "decoder.h"

#define WALK "stagetrace.otlp.decode.spans"
#define ATTRIBUTES "stagetrace.otlp.decode.attributes"

static const char *const WHERE[DECODER_HELD][2] = {
    {ATTRIBUTES, "looked_up"}, {WALK, "attribute"}, {WALK, "Refused"}, {WALK, "BAD_PARENT_ID"},
    {WALK, "straightened"}, {WALK, "status_code"}, {WALK, "with_all_attributes"},
};

static int read_key(State *state, PyObject *key, PyObject *meaning, int at) {
    char *text;
    Py_ssize_t size;
    int column, tag;
    if (PyBytes_AsStringAndSize(key, &text, &size) < 0 || !PyArg_ParseTuple(meaning, "ii", &column, &tag)) return -1;
    if (size > MAX_KEY || column < 0 || column >= state->keyed || at >= state->keyed) return fail(PyExc_ValueError, "a key without room");
    /* In its place by size, before longer ones. */
    for (; at > 0 && state->keys[at - 1].size > size; at--) state->keys[at] = state->keys[at - 1];
    Key *into = &state->keys[at];
    into->size = (unsigned char)size;
    into->column = (unsigned char)column;
    into->tag = (unsigned char)tag;
    memcpy(into->text, text, (size_t)size);
    state->kinds[column] = (unsigned char)tag;
    return 0;
}

/* Read PLACES: serialized keys, each with its column and the tag of its type. */
static int read_keys(State *state) {
    PyObject *key, *meaning, *module = PyImport_ImportModule(ATTRIBUTES);
    PyObject *places = module ? PyObject_GetAttrString(module, "PLACES") : NULL;
    Py_ssize_t next = 0, size = places ? PyDict_Size(places) : -1;
    int result = size < 0 ? -1 : 0, at = 0;
    if (size > MAX_COLUMNS - 2) result = fail(PyExc_ValueError, "more columns than there is room for");
    state->keyed = (int)size;
    while (result == 0 && PyDict_Next(places, &next, &key, &meaning)) result = read_key(state, key, meaning, at++);
    if (result == 0) {
        state->kinds[OTHER(state)] = DOUBLE;
        state->kinds[REST(state)] = BINARY;
        for (int length = 0, i = 0; length < MAX_KEY + 2; length++) {
            while (i < state->keyed && state->keys[i].size < length) i++;
            state->first[length] = (unsigned char)i;
        }
    }
    Py_XDECREF(places);
    Py_XDECREF(module);
    return result;
}

static int fill(PyObject *module) {
    State *state = decoder_state(module);
    return import_all(state->held, WHERE, DECODER_HELD) < 0 ? -1 : read_keys(state);
}

static PyMethodDef functions[] = {
    {"decode_parts", (PyCFunction)(void (*)(void))decode_parts, METH_FASTCALL, "decode_parts(data, at, end, most)"},
    {"decode_spans", (PyCFunction)(void (*)(void))decode_spans, METH_FASTCALL, "decode_spans(data, held, check, most)"},
    {"decode_columns", decode_columns, METH_O, "decode_columns(logs)"},
    {"decode_attribute", (PyCFunction)(void (*)(void))decode_attribute, METH_FASTCALL,
     "decode_attribute(data, offsets, known, bit, key, kind, odd)"},
    {NULL, NULL, 0, NULL},
};

const Group decoder_group = {"decoder", functions, fill};
