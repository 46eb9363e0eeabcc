/* What the files of `_decoder` share: the columns, and how spans lie in a log between `walk` and `columns`. */
#ifndef STAGETRACE_DECODER_H
#define STAGETRACE_DECODER_H

#include "buffer.h"

#include <stdint.h>

#ifdef __GNUC__
#define HIDDEN __attribute__((visibility("hidden")))
#else
#define HIDDEN
#endif

/* Objects of the reference that the module's state holds. */
enum { MEANING, WRITTEN, REFUSED, BAD_PARENT, STRAIGHTENED, STATUS_CODE, ALL_ATTRIBUTES, HELD };

/* Kinds of columns; the first four are the tags of such values in an AnyValue. */
enum { STRING = 0x0A, BOOL = 0x10, INT = 0x18, DOUBLE = 0x21, BINARY = 0, INT32 = 1 };

#define MAX_KEY 63 /* bytes */
#define MAX_COLUMNS 64

/* An attribute that has a column. */
typedef struct {
    unsigned char size, column, tag;
    char text[MAX_KEY];
} Key;

/* Columns that not every span has are numbers: those of keys, then OTHER, then REST. */
typedef struct {
    PyObject *held[HELD];
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
HIDDEN PyObject *parts(PyObject *module, PyObject *const *args, Py_ssize_t given);
HIDDEN PyObject *walk(PyObject *module, PyObject *const *args, Py_ssize_t given);
HIDDEN PyObject *columns(PyObject *module, PyObject *given);
HIDDEN PyObject *find(PyObject *module, PyObject *const *args, Py_ssize_t given);

#endif
