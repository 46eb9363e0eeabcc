/* Protobuf's wire format, as far as taking messages apart needs it: decode/protobuf_wire.py in C.
 * Nothing is read behind `end`. */
#ifndef STAGETRACE_WIRE_H
#define STAGETRACE_WIRE_H

#include "buffer.h"

#include <stdint.h>

enum { MORE = 0x80 }; /* set in each byte of a number but its last */

typedef const unsigned char *Bytes;

static inline size_t behind(Bytes at, Bytes end) { return (size_t)(end - at); }

static inline uint64_t fixed64(Bytes at) {
    uint64_t number = 0;
    for (int i = 7; i >= 0; i--) number = number << 8 | at[i];
    return number;
}

/* Read the number at `at`, or UINT64_MAX for a greater one. Return what follows it, NULL if it does not end. */
static inline Bytes varint(Bytes at, Bytes end, uint64_t *number) {
    *number = 0;
    for (int shift = 0; shift < 70 && at < end; shift += 7) {
        unsigned char byte = *at++;
        if (shift == 63 && (byte & 0x7E)) *number = UINT64_MAX;
        else *number |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < MORE) return at;
    }
    return NULL;
}

/* Read a length, and return what follows it; NULL unless so many bytes are there. */
static inline Bytes length(Bytes at, Bytes end, size_t *size) {
    uint64_t number;
    Bytes first = varint(at, end, &number);
    if (first == NULL || number > behind(first, end)) return NULL;
    *size = (size_t)number;
    return first;
}

typedef struct {
    Bytes first, after;
    uint32_t number;
    bool delimited;
} Field;

/* `field_at`: return false if there is no field that ends before `end`. */
static inline bool read_field(Field *field, Bytes at, Bytes end) {
    uint64_t tag, number;
    size_t size;
    Bytes first = varint(at, end, &tag);
    if (first == NULL || tag < 8 || tag > UINT32_MAX) return false;
    int type = (int)(tag & 7);
    if (type == 2) {
        first = length(first, end, &size);
        if (first == NULL) return false;
    } else if (type == 0) {
        Bytes after = varint(first, end, &number);
        if (after == NULL) return false;
        size = behind(first, after);
    } else if (type == 1 || type == 5) {
        size = type == 1 ? 8 : 4;
        if (size > behind(first, end)) return false;
    } else {
        return false; /* a group */
    }
    *field = (Field){first, first + size, (uint32_t)(tag >> 3), type == 2};
    return true;
}

static inline PyObject *bytes_of(Bytes at, Bytes end) {
    return PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)behind(at, end));
}

static inline PyObject *bytes_in(const Buffer *buffer) {
    return PyBytes_FromStringAndSize(buffer->data, (Py_ssize_t)buffer->size);
}

static inline int put_all(Buffer *buffer, Bytes at, Bytes end) {
    if (!reserve(buffer, behind(at, end))) return -1;
    put(buffer, at, behind(at, end));
    return 0;
}

#endif
