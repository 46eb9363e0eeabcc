/* What the C files of `stagetrace._native` share. module.c lists their groups (docs/decisions/048). */
#ifndef STAGETRACE_NATIVE_H
#define STAGETRACE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* Read one of the system's clocks, in nanoseconds. */
static inline int64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Let `objects` be what `from` names: of each a module, and what of it. */
static inline int import_all(PyObject **objects, const char *const (*from)[2], int count) {
    for (int i = 0; i < count; i++) {
        PyObject *module = PyImport_ImportModule(from[i][0]);
        objects[i] = module ? PyObject_GetAttrString(module, from[i][1]) : NULL;
        Py_XDECREF(module);
        if (objects[i] == NULL) return -1;
    }
    return 0;
}

/* Bytes that grow, by `step` at the least. `put_...` write what has been reserved. */
typedef struct {
    char *data; /* on the heap if there is room */
    size_t size, room, step;
} Buffer;

static inline void open_buffer(Buffer *buffer) { *buffer = (Buffer){.data = (char *)"", .step = 4096}; }

static inline void close_buffer(Buffer *buffer) {
    if (buffer->room) PyMem_Free(buffer->data);
}

static inline int fail(PyObject *exception, const char *why) {
    PyErr_SetString(exception, why);
    return -1;
}

static inline bool reserve(Buffer *buffer, size_t more) {
    if (more <= buffer->room - buffer->size) return true;
    size_t needed = buffer->size + more, room = needed + (needed > buffer->step ? needed : buffer->step);
    bool fits = more < PY_SSIZE_T_MAX / 4 && buffer->size < PY_SSIZE_T_MAX / 4;
    char *data = fits ? PyMem_Realloc(buffer->room ? buffer->data : NULL, room) : NULL;
    if (data == NULL) {
        PyErr_NoMemory();
        return false;
    }
    buffer->data = data;
    buffer->room = room;
    return true;
}

static inline void put(Buffer *buffer, const void *bytes, size_t size) {
    memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
}

static inline int put_bytes(Buffer *buffer, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0 || !reserve(buffer, (size_t)size)) return -1;
    put(buffer, data, (size_t)size);
    return 0;
}

/* Functions and types that Python code asks for by the name of their group, which imports the Python objects that they
 * work with. */
typedef struct {
    const char *name;
    PyMethodDef *functions; /* NULL if there are none */
    int (*fill)(PyObject *module); /* import the objects and add the types; NULL if there is nothing to do */
} Group;

extern const Group kernel_group, blocked_threads_group, sigterm_group, timer_group, stacks_group, encoder_group,
    marks_group, stage_group, histograms_group;

#endif
