/* What the files of the decoder share: protobuf's wire format, an attribute as encoders write it, and the columns that
 * spans are read into. */
#ifndef STAGETRACE_DECODER_H
#define STAGETRACE_DECODER_H

#include "native.h"

/* --- Protobuf's wire format, as far as taking messages apart needs it: decode/protobuf_wire.py in C.
 * Nothing is read behind `end`. */

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
    Bytes start, first, after; /* its tag, its value, what follows */
    uint32_t tag;              /* number and wire type */
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
    *field = (Field){at, first, first + size, (uint32_t)tag};
    return true;
}

static inline PyObject *bytes_of(Bytes at, Bytes end) {
    return PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)behind(at, end));
}

static inline PyObject *bytes_in(const Buffer *buffer) {
    return PyBytes_FromStringAndSize(buffer->data, (Py_ssize_t)buffer->size);
}

static inline int put_all(Buffer *buffer, const void *bytes, size_t size) {
    if (!reserve(buffer, size)) return -1;
    put(buffer, bytes, size);
    return 0;
}

/* An attribute that is a key and a value, and nothing else. */
typedef struct {
    const char *key;
    size_t key_size;
    Bytes value, end; /* a serialized AnyValue, of one byte at the least */
} Pair;

enum { ATTRIBUTE = 0x4A, KEY = 0x0A, VALUE = 0x12 }; /* tags, of Span and of KeyValue */

/* Return whether a number has no more bytes than it takes: stores search for attributes by their bytes. */
static inline bool is_plain(Bytes at, Bytes after) { return behind(at, after) == 1 || after[-1] != 0; }

static inline bool read_pair(Pair *pair, Bytes at, Bytes end) {
    size_t size;
    Bytes key = at < end && *at == KEY ? length(at + 1, end, &pair->key_size) : NULL;
    if (key == NULL || !is_plain(at + 1, key)) return false;
    Bytes tag = key + pair->key_size;
    Bytes value = tag < end && *tag == VALUE ? length(tag + 1, end, &size) : NULL;
    if (value == NULL || size == 0 || !is_plain(tag + 1, value) || size != behind(value, end)) return false;
    pair->key = (const char *)key;
    pair->value = value;
    pair->end = end;
    return true;
}

/* --- The columns: those that each span has, one for each of the keys, then OTHER, then REST; all that spans have of them
 * is in a log until it is wanted. */

enum { C_TRACE_ID, C_SPAN_ID, C_PARENT, C_NAME, C_KIND, C_STATUS, C_START, C_END, C_FLAGS, FIXED };

/* Kinds of columns; the first four are the tags of such values in an AnyValue. */
enum { STRING = 0x0A, BOOL = 0x10, INT = 0x18, DOUBLE = 0x21, BINARY = 0, INT32 = 1 };

#define MAX_KEY 63 /* bytes */
#define MAX_COLUMNS 96

/* An attribute that has a column. */
typedef struct {
    unsigned char size, column;
    char text[MAX_KEY];
} Key;

/* Objects that the module's state holds. */
enum { ROW_OR_REASON, NAMES, KEYS, DECODER_HELD };

typedef struct {
    PyObject *held[DECODER_HELD];
    int keyed;
    unsigned char kinds[MAX_COLUMNS]; /* by column */
    Key keys[MAX_COLUMNS];            /* by size */
    unsigned char first[MAX_KEY + 2]; /* keys of a size begin here, and end where those of the next do */
} State;

#define OTHER(state) (FIXED + (state)->keyed)
#define REST(state) (OTHER(state) + 1)
#define END_OF_SPAN(state) (REST(state) + 1) /* in the place of a column */

/* A value in a log, before its bytes. */
typedef struct {
    uint32_t column, size;
} Cell;

#define NO_VALUE UINT32_MAX /* the size of what is there and none of the column's values */

enum { OPEN, ADDING, JOINED };

typedef struct {
    Buffer cells;
    size_t spans;
    int state; /* one of these: one call at a time adds spans, and none does once they were joined */
} Log;

/* Return what `open_log` returned, after a change of its state from OPEN; NULL with an exception if it has another. */
Log *log_of(PyObject *object, int state);

/* Functions of the module, each in a file of its own. */
PyObject *decode_parts(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *open_log(PyObject *module, PyObject *unused);
PyObject *add_spans(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *join_logs(PyObject *module, PyObject *given);
PyObject *find_attribute(PyObject *module, PyObject *const *args, Py_ssize_t given);
State *decoder_state(PyObject *module);

#endif
