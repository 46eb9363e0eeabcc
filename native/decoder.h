/* What the files of the decoder share: protobuf's wire format, an attribute as encoders write it, the columns, and how
 * spans lie in a log between `decode_spans` and `decode_columns`. */
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

/* --- An attribute as encoders write it: a key, and a value of one of four kinds. It comes from anybody. */

/* Kinds of columns; the first four are the tags of such values in an AnyValue. */
enum { STRING = 0x0A, BOOL = 0x10, INT = 0x18, DOUBLE = 0x21, BINARY = 0, INT32 = 1 };
enum { KEY = 0x0A, VALUE = 0x12 }; /* tags */

/* What a column has of the present span. */
typedef struct {
    enum { ABSENT, UNTOLD, NUMBER, TEXT } has;
    union {
        uint64_t bits; /* of an int, a double or a bool */
        struct {
            const char *text;
            size_t size;
        };
    };
    PyObject *owner; /* of text that is not the request's */
} Value;

/* An attribute that is a key and a value. */
typedef struct {
    const char *key;
    size_t key_size;
    Bytes value, end;
    bool is_short; /* with lengths of one byte */
} Pair;

/* Read a length as encoders write it. Return what follows, or NULL. */
static inline Bytes plain_length(Bytes at, Bytes end, size_t *size) {
    Bytes first = length(at, end, size);
    return first != NULL && (behind(at, first) == 1 || first[-1] != 0) ? first : NULL;
}

static inline bool read_pair(Pair *pair, Bytes at, Bytes end) {
    size_t size;
    Bytes key = at < end && *at == KEY ? plain_length(at + 1, end, &pair->key_size) : NULL;
    if (key == NULL) return false;
    Bytes tag = key + pair->key_size;
    Bytes value = tag < end && *tag == VALUE ? plain_length(tag + 1, end, &size) : NULL;
    if (value == NULL || size == 0 || size != behind(value, end)) return false;
    pair->key = (const char *)key;
    pair->value = value;
    pair->end = end;
    pair->is_short = behind(at, key) == 2 && behind(tag, value) == 2;
    return true;
}

/* Read an AnyValue that is written as protobuf does. Return false for another, and for lists, maps and bytes. */
static inline bool read_value(Value *value, const Pair *pair) {
    Bytes at = pair->value + 1, end = pair->end;
    uint64_t number;
    *value = (Value){.has = NUMBER};
    switch (*pair->value) {
    case STRING: {
        size_t size;
        at = plain_length(at, end, &size);
        if (at == NULL || size != behind(at, end)) return false;
        value->has = TEXT;
        value->text = (const char *)at;
        value->size = size;
        return true;
    }
    case BOOL:
        if (behind(at, end) != 1 || *at > 1) return false;
        value->bits = *at;
        return true;
    case INT: {
        Bytes after = varint(at, end, &number);
        if (after != end || (behind(at, after) > 1 && after[-1] == 0) || (behind(at, after) == 10 && after[-1] != 1))
            return false;
        value->bits = number;
        return true;
    }
    case DOUBLE:
        if (behind(at, end) != 8) return false;
        value->bits = fixed64(at);
        return true;
    default:
        return false;
    }
}

/* --- The columns. */

/* Objects of the reference that the module's state holds. */
enum { MEANING, WRITTEN, REFUSED, BAD_PARENT, STRAIGHTENED, STATUS_CODE, ALL_ATTRIBUTES, DECODER_HELD };

#define MAX_KEY 63 /* bytes */
#define MAX_COLUMNS 64

/* An attribute that has a column. */
typedef struct {
    unsigned char size, column, tag;
    char text[MAX_KEY];
} Key;

/* Columns that not every span has are numbers: those of keys, then OTHER, then REST. */
typedef struct {
    PyObject *held[DECODER_HELD];
    int keyed;
    unsigned char kinds[MAX_COLUMNS]; /* STRING, BOOL, INT, DOUBLE or BINARY, by column */
    Key keys[MAX_COLUMNS];            /* by size */
    unsigned char first[MAX_KEY + 2]; /* keys of a size begin here, and end where those of the next do */
} State;

#define OTHER(state) ((state)->keyed)
#define REST(state) ((state)->keyed + 1)

/* A span in a log, before its name and values, each of these with a Head. In this machine's byte order. */
typedef struct {
    int64_t start, end;
    unsigned char trace_id[16], span_id[8], parent[8];
    uint32_t flags, kind, status;
    uint16_t has_parent, has_status;
    uint32_t name, size; /* bytes of the name, and of name and values */
} Row;

typedef struct {
    uint32_t column, size;
} Head;

#define NO_VALUE UINT32_MAX /* the size of what a column cannot tell */

/* Functions of the module, each in a file of its own. */
PyObject *decode_parts(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *decode_spans(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *decode_columns(PyObject *module, PyObject *given);
PyObject *decode_attribute(PyObject *module, PyObject *const *args, Py_ssize_t given);
State *decoder_state(PyObject *module);

#endif
