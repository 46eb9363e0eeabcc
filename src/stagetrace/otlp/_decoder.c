/* The reference's spans.py in C, the same spans for a tenth of the CPU (docs/decisions/011): `parts`, `walk`, and
 * `columns` of what `walk` has read. This file is the module around them.
 *
 * hatch_build.py compiles this for the stable ABI of 3.10, except on free-threaded builds, for which there is none.
 */
#include "decoder.h"

#define WALK "stagetrace.otlp.decode.spans"
#define ATTRIBUTES "stagetrace.otlp.decode.attributes"

static const char *const WHERE[HELD][2] = {
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

static int read_state(PyObject *module) {
    State *state = PyModule_GetState(module);
    for (int i = 0; i < HELD; i++) {
        PyObject *from = PyImport_ImportModule(WHERE[i][0]);
        state->held[i] = from ? PyObject_GetAttrString(from, WHERE[i][1]) : NULL;
        Py_XDECREF(from);
        if (state->held[i] == NULL) return -1;
    }
    return read_keys(state);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = PyModule_GetState(module);
    for (int i = 0; state != NULL && i < HELD; i++) Py_VISIT(state->held[i]);
    return 0;
}

static int clear(PyObject *module) {
    State *state = PyModule_GetState(module);
    for (int i = 0; state != NULL && i < HELD; i++) Py_CLEAR(state->held[i]);
    return 0;
}

static void free_module(void *module) { clear(module); }

static PyMethodDef methods[] = {
    {"parts", (PyCFunction)(void (*)(void))parts, METH_FASTCALL, "parts(data, at, end, most)"},
    {"walk", (PyCFunction)(void (*)(void))walk, METH_FASTCALL, "walk(data, held, check, most)"},
    {"columns", columns, METH_O, "columns(logs)"},
    {"find", (PyCFunction)(void (*)(void))find, METH_FASTCALL, "find(data, offsets, known, bit, key, kind, odd)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, read_state},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_decoder", .m_size = sizeof(State), .m_methods = methods, .m_slots = slots,
    .m_traverse = traverse, .m_clear = clear, .m_free = free_module,
};

PyMODINIT_FUNC PyInit__decoder(void) { return PyModuleDef_Init(&definition); }
