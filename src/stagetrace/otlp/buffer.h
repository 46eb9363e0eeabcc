/* What the C files share: bytes that grow. */
#ifndef STAGETRACE_BUFFER_H
#define STAGETRACE_BUFFER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Bytes that grow. `put_...` write what has been reserved. */
typedef struct {
    char *data;
    size_t size, room;
    char first[4096];
} Buffer;

static inline void open_buffer(Buffer *buffer) {
    buffer->data = buffer->first;
    buffer->size = 0;
    buffer->room = sizeof buffer->first;
}

static inline void close_buffer(Buffer *buffer) {
    if (buffer->data != buffer->first) PyMem_Free(buffer->data);
}

static inline int fail(PyObject *exception, const char *why) {
    PyErr_SetString(exception, why);
    return -1;
}

static inline bool reserve(Buffer *buffer, size_t more) {
    if (more <= buffer->room - buffer->size) return true;
    size_t needed = buffer->size + more, room = needed + (needed < 65536 ? needed : needed / 8);
    bool fits = more < PY_SSIZE_T_MAX / 4 && buffer->size < PY_SSIZE_T_MAX / 4;
    char *data = fits ? PyMem_Malloc(room) : NULL;
    if (data == NULL) {
        PyErr_NoMemory();
        return false;
    }
    memcpy(data, buffer->data, buffer->size);
    close_buffer(buffer);
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

#endif
