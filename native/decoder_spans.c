/* Spans into columns.
 *
 * What is read comes from anybody. Nothing is read behind the end of a span, nothing is allocated for a length that has
 * not been compared with what is there, nothing recurses. Only what encoders write is understood here: of any other span
 * `row_or_reason` of decode/spans.py returns the row, called for that one.
 */
#include "decoder.h"

#include <math.h>

/* Tags of fields of Span: number and wire type. */
enum { TRACE_ID = 0x0A, SPAN_ID = 0x12, PARENT = 0x22, NAME = 0x2A, KIND = 0x30, START_TIME = 0x39, END_TIME = 0x41 };
enum { STATUS = 0x7A, FLAGS = 0x85, MESSAGE = 0x12, CODE = 0x18 }; /* the last two are of Status */

/* Fields that have a column, each a bit; each comes once. */
enum { IDS = 1 << 1 | 1 << 2, ONCE = IDS | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15 | 1 << 16 };

#define LATEST_NS ((uint64_t)INT64_MAX - 1)
#define STAGE_TOTAL "ml.stage."

/* One call of `add_spans`. */
typedef struct {
    State *state;
    Log *log;
    Bytes begin;
    PyObject *refused;
    Py_ssize_t taken;
    long long refusals;
    PyObject *latest_start;
    uint64_t latest; /* the same: Python refuses spans that start later */
    size_t last[MAX_COLUMNS]; /* what follows each column's last cell */
    size_t span;              /* where the present span begins in the log */
    Buffer rest;              /* its fields that no column holds */
} Walk;

typedef enum { DONE, ODD, FAILED } Outcome; /* ODD: for Python; FAILED: with an exception */

/* A value of one of the four kinds that columns have. */
typedef struct {
    int kind;
    uint64_t bits; /* of an int, a double or a bool */
    double number;
    Bytes text;
    size_t size;
} Value;

/* The fields that have a column. */
typedef struct {
    Bytes trace_id, span_id, parent, name;
    size_t name_size;
    uint64_t start, end, kind, flags, status;
    bool has_status;
} Span;

/* --- cells */

static inline int put_cell(Walk *walk, int column, const void *value, size_t size) {
    Buffer *cells = &walk->log->cells;
    Cell cell = {(uint32_t)column, (uint32_t)size};
    if (size == NO_VALUE) size = 0;
    if (!reserve(cells, sizeof cell + size)) return -1;
    put(cells, &cell, sizeof cell);
    if (size) put(cells, value, size);
    walk->last[column] = cells->size;
    return 0;
}

static bool has(const Walk *walk, int column) { return walk->last[column] > walk->span; }

static int end_span(Walk *walk) {
    if (put_cell(walk, END_OF_SPAN(walk->state), NULL, 0) < 0) return -1;
    walk->span = walk->log->cells.size;
    walk->log->spans++;
    walk->taken++;
    return 0;
}

static int put_number(Walk *walk, int number, uint64_t bits) {
    uint32_t narrow = (uint32_t)bits;
    unsigned char truth = bits != 0;
    int kind = walk->state->kinds[number];
    if (kind == INT32) return put_cell(walk, number, &narrow, sizeof narrow);
    return kind == BOOL ? put_cell(walk, number, &truth, 1) : put_cell(walk, number, &bits, sizeof bits);
}

static int put_double(Walk *walk, int number, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put_number(walk, number, bits);
}

static int put_rest(Walk *walk, const Field *field) {
    return put_all(&walk->rest, field->start, behind(field->start, field->after));
}

/* Take back what the present span has left in the log. */
static void undo(Walk *walk) {
    walk->log->cells.size = walk->span;
    memset(walk->last, 0, sizeof walk->last);
}

/* --- attributes */

static bool is_column_kind(int kind) { return kind == STRING || kind == BOOL || kind == INT || kind == DOUBLE; }

/* Read an AnyValue of one of the four kinds. Return false for another one, and for what encoders do not write. */
static bool read_value(Value *value, const Pair *pair) {
    Bytes at = pair->value + 1, end = pair->end;
    value->kind = *pair->value;
    if (value->kind == STRING) {
        value->text = length(at, end, &value->size);
        return value->text != NULL && is_plain(at, value->text) && value->size == behind(value->text, end);
    }
    if (value->kind == DOUBLE) {
        if (behind(at, end) != sizeof value->bits) return false;
        value->bits = fixed64(at);
        memcpy(&value->number, &value->bits, sizeof value->number);
        return true;
    }
    if (!is_column_kind(value->kind) || varint(at, end, &value->bits) != end || !is_plain(at, end)) return false;
    if (value->kind == BOOL) return value->bits <= 1;
    value->number = (double)(int64_t)value->bits;
    return behind(at, end) < 10 || end[-1] == 1;
}

static const Key *find_key(const State *state, const Pair *pair) {
    if (pair->key_size > MAX_KEY) return NULL;
    for (int i = state->first[pair->key_size]; i < state->first[pair->key_size + 1]; i++)
        if (memcmp(state->keys[i].text, pair->key, pair->key_size) == 0) return &state->keys[i];
    return NULL;
}

/* As `semconv.stage_of_total`. */
static bool is_stage_total(const Pair *pair) {
    size_t prefix = strlen(STAGE_TOTAL);
    return pair->key_size > prefix + 3 && memcmp(pair->key, STAGE_TOTAL, prefix) == 0
           && memcmp(pair->key + pair->key_size - 3, ".ms", 3) == 0;
}

/* Add to the sum of the totals of stages without a column. */
static int add_total(Walk *walk, double total) {
    int other = OTHER(walk->state);
    if (!has(walk, other)) return put_double(walk, other, total);
    char *place = walk->log->cells.data + walk->last[other] - sizeof total;
    double sum;
    memcpy(&sum, place, sizeof sum);
    sum += total;
    memcpy(place, &sum, sizeof sum);
    return 0;
}

static Outcome take_attribute(Walk *walk, const Field *field) {
    Pair pair;
    Value value = {.kind = 0};
    if (*field->start != ATTRIBUTE || !is_plain(field->start + 1, field->first)
        || !read_pair(&pair, field->first, field->after)) return ODD;
    const Key *key = find_key(walk->state, &pair);
    bool is_total = key == NULL && is_stage_total(&pair), whole = false;
    if (!read_value(&value, &pair) && (key != NULL || is_total || is_column_kind(*pair.value))) return ODD;
    if (key == NULL && !is_total) return put_rest(walk, field) < 0 ? FAILED : DONE;
    int kind = is_total ? DOUBLE : walk->state->kinds[key->column], result = 0;
    bool fits = kind == DOUBLE ? (value.kind == DOUBLE || value.kind == INT) && isfinite(value.number) : value.kind == kind;
    if (is_total) {
        if (fits) result = add_total(walk, value.number);
    } else if (has(walk, key->column)) {
        return ODD; /* a key that comes twice */
    } else if (!fits) {
        result = put_cell(walk, key->column, NULL, NO_VALUE);
    } else {
        whole = value.kind == kind;
        result = kind == STRING ? put_cell(walk, key->column, value.text, value.size)
                 : kind == DOUBLE ? put_double(walk, key->column, value.number)
                                  : put_number(walk, key->column, value.bits);
    }
    return result < 0 || (!whole && put_rest(walk, field) < 0) ? FAILED : DONE;
}

/* --- spans */

static bool is_zero(Bytes at, size_t size) {
    for (; size > 0 && *at == 0; at++) size--;
    return size == 0;
}

/* Read a Status: nothing, or a code of one byte, perhaps behind a message, which is left to the rest. */
static Outcome take_status(Walk *walk, Span *span, const Field *field) {
    size_t size = 0;
    Bytes at = field->first, end = field->after;
    if (at < end && *at == MESSAGE) {
        at = length(at + 1, end, &size);
        if (at == NULL) return ODD;
        at += size;
    }
    if (at < end && (behind(at, end) != 2 || *at != CODE || at[1] == 0 || at[1] >= MORE)) return ODD;
    span->has_status = true;
    span->status = at < end ? at[1] : 0;
    return size > 0 && put_rest(walk, field) < 0 ? FAILED : DONE;
}

static Outcome take_id(Bytes *id, const Field *field, size_t size) {
    *id = field->first;
    return behind(field->first, field->after) == size && !is_zero(field->first, size) ? DONE : ODD;
}

static Outcome take_parent(Walk *walk, Span *span, const Field *field) {
    if (take_id(&span->parent, field, 8) == DONE) return DONE;
    if (behind(field->first, field->after) != 8) return ODD;
    span->parent = NULL; /* some exporters write zeros of a root */
    return put_rest(walk, field) < 0 ? FAILED : DONE;
}

static Outcome take_time(uint64_t *time, const Field *field) {
    *time = fixed64(field->first);
    return *time <= LATEST_NS ? DONE : ODD;
}

static Outcome take_field(Walk *walk, Span *span, const Field *field) {
    size_t size = behind(field->first, field->after);
    switch (field->tag) {
    case ATTRIBUTE:
        return take_attribute(walk, field);
    case TRACE_ID:
        return take_id(&span->trace_id, field, 16);
    case SPAN_ID:
        return take_id(&span->span_id, field, 8);
    case PARENT:
        return take_parent(walk, span, field);
    case NAME:
        span->name = field->first;
        span->name_size = size;
        return DONE;
    case KIND:
        span->kind = *field->first;
        return size == 1 ? DONE : ODD;
    case START_TIME:
        return take_time(&span->start, field);
    case END_TIME:
        return take_time(&span->end, field);
    case STATUS:
        return take_status(walk, span, field);
    case FLAGS:
        for (size = 4; size-- > 0;) span->flags = span->flags << 8 | field->first[size];
        return DONE;
    default: /* what has a column is not written so */
        if (field->tag < 17 << 3 && ((ONCE | 1 << 9) >> (field->tag >> 3) & 1)) return ODD;
        return put_rest(walk, field) < 0 ? FAILED : DONE;
    }
}

static int put_span(Walk *walk, const Span *span) {
    if (put_cell(walk, C_TRACE_ID, span->trace_id, 16) < 0 || put_cell(walk, C_SPAN_ID, span->span_id, 8) < 0
        || (span->parent && put_cell(walk, C_PARENT, span->parent, 8) < 0)
        || put_cell(walk, C_NAME, span->name, span->name_size) < 0 || put_number(walk, C_KIND, span->kind) < 0
        || (span->has_status && put_number(walk, C_STATUS, span->status) < 0) || put_number(walk, C_START, span->start) < 0
        || put_number(walk, C_END, span->end) < 0 || put_number(walk, C_FLAGS, span->flags) < 0) return -1;
    if (walk->rest.size && put_cell(walk, REST(walk->state), walk->rest.data, walk->rest.size) < 0) return -1;
    return end_span(walk);
}

static Outcome take_fields(Walk *walk, Bytes at, Bytes end) {
    Span span = {.name_size = 0};
    unsigned seen = 0;
    walk->rest.size = 0;
    while (at < end) {
        Field field;
        if (!read_field(&field, at, end)) return ODD;
        at = field.after;
        unsigned bit = field.tag < 17 << 3 ? ONCE & 1u << (field.tag >> 3) : 0;
        if (seen & bit) return ODD;
        seen |= bit;
        Outcome outcome = take_field(walk, &span, &field);
        if (outcome != DONE) return outcome;
    }
    if ((seen & IDS) != IDS || span.start > walk->latest) return ODD;
    return put_span(walk, &span) < 0 ? FAILED : DONE;
}

/* --- spans that Python reads */

static int refuse(Walk *walk, PyObject *why) {
    PyObject *known = PyDict_GetItemWithError(walk->refused, why);
    long long count = known ? PyLong_AsLongLong(known) : 0;
    if (PyErr_Occurred()) return -1;
    PyObject *more = PyLong_FromLongLong(count + 1);
    int result = more ? PyDict_SetItem(walk->refused, why, more) : -1;
    Py_XDECREF(more);
    walk->refusals++;
    return result;
}

static int put_object(Walk *walk, int number, PyObject *object) {
    const char *text = NULL;
    char *bytes;
    Py_ssize_t size = 0;
    int kind = walk->state->kinds[number];
    if (object == Py_None) return put_cell(walk, number, NULL, NO_VALUE);
    if (kind == DOUBLE) {
        double value = PyFloat_AsDouble(object);
        return PyErr_Occurred() ? -1 : put_double(walk, number, value);
    }
    if (kind != STRING && kind != BINARY) {
        long long value = PyLong_AsLongLong(object); /* a bool is an int */
        return PyErr_Occurred() ? -1 : put_number(walk, number, (uint64_t)value);
    }
    if (kind == STRING) text = PyUnicode_AsUTF8AndSize(object, &size);
    else if (PyBytes_AsStringAndSize(object, &bytes, &size) == 0) text = bytes;
    if (text == NULL) return -1;
    if ((size_t)size >= NO_VALUE) return fail(PyExc_OverflowError, "a value of 4 GiB");
    return put_cell(walk, number, text, (size_t)size);
}

/* Put a dict by the names of columns. */
static int put_row(Walk *walk, PyObject *row) {
    for (int i = 0; i < END_OF_SPAN(walk->state); i++) {
        PyObject *value = PyDict_GetItemWithError(row, PyTuple_GetItem(walk->state->held[NAMES], i));
        if (value == NULL && PyErr_Occurred()) return -1;
        if (value == NULL) continue;
        Py_INCREF(value);
        int result = put_object(walk, i, value);
        Py_DECREF(value);
        if (result < 0) return -1;
    }
    return 0;
}

static int take_odd_span(Walk *walk, Bytes first, Bytes after) {
    PyObject *span = bytes_of(first, after);
    PyObject *function = walk->state->held[ROW_OR_REASON];
    PyObject *found = span ? PyObject_CallFunctionObjArgs(function, span, walk->latest_start, NULL) : NULL;
    int result = -1;
    if (found != NULL && PyUnicode_Check(found)) result = refuse(walk, found);
    else if (found != NULL && put_row(walk, found) == 0) result = end_span(walk);
    Py_XDECREF(found);
    Py_XDECREF(span);
    return result;
}

/* --- all of them */

static int take_span(Walk *walk, Bytes first, Bytes after) {
    if (behind(first, after) >= NO_VALUE) return fail(PyExc_OverflowError, "a span of 4 GiB");
    Outcome outcome = take_fields(walk, first, after);
    if (outcome == DONE) return 0;
    undo(walk);
    int result = outcome == ODD ? take_odd_span(walk, first, after) : -1;
    if (result < 0) undo(walk);
    return result;
}

static int take_spans(Walk *walk, size_t size, const char *held, size_t held_size, long long most) {
    uint64_t place[2];
    for (size_t at = 0; at < held_size && walk->refusals <= most; at += sizeof place) {
        memcpy(place, held + at, sizeof place);
        if (place[0] > place[1] || place[1] > size) return fail(PyExc_ValueError, "a span behind the data");
        if (take_span(walk, walk->begin + place[0], walk->begin + place[1]) < 0) return -1;
    }
    return 0;
}

PyObject *add_spans(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    char *data, *held;
    Py_ssize_t size, held_size;
    if (given != 5) return PyErr_Format(PyExc_TypeError, "add_spans takes a log, two bytes and two ints");
    if (PyBytes_AsStringAndSize(args[1], &data, &size) < 0 || PyBytes_AsStringAndSize(args[2], &held, &held_size) < 0)
        return NULL;
    long long most = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    unsigned long long latest = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred()) return NULL;
    if (held_size % (Py_ssize_t)(2 * sizeof(uint64_t))) return PyErr_Format(PyExc_ValueError, "half a pair of places");
    Walk one = {.state = decoder_state(module), .begin = (Bytes)data, .latest_start = args[4], .latest = latest};
    one.log = log_of(args[0], ADDING);
    if (one.log == NULL) return NULL;
    one.span = one.log->cells.size;
    if (one.log->cells.room == 0) one.log->cells.step = (size_t)size; /* about what it will take */
    open_buffer(&one.rest);
    one.refused = PyDict_New();
    PyObject *result = NULL;
    if (one.refused != NULL && take_spans(&one, (size_t)size, held, (size_t)held_size, most) == 0)
        result = Py_BuildValue("(nO)", one.taken, one.refused);
    Py_XDECREF(one.refused);
    close_buffer(&one.rest);
    one.log->state = OPEN;
    return result;
}
