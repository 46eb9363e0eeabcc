/* `walk_in_python` of spans.py in C.
 *
 * What is read comes from anybody. Nothing is read behind the end of a span, nothing is allocated for a length that has
 * not been compared with what is there, nothing recurses. Only what encoders write is understood here: whatever else a
 * span or an attribute is, the reference says what it means, called for that one.
 */
#include "decoder.h"

#include <math.h>

/* Tags of fields: number and wire type. */
enum { TRACE_ID = 0x0A, SPAN_ID = 0x12, PARENT = 0x22, NAME = 0x2A, KIND = 0x30, START_TIME = 0x39, END_TIME = 0x41 };
enum { ATTRIBUTE = 0x4A, STATUS = 0x7A, FLAGS = 0x85, CODE = 0x18 };

enum { IDS = 28, TIMES = 18 }; /* bytes of both ids, and of both times, tags and lengths included */
#define LATEST_NS ((uint64_t)INT64_MAX - 1)
#define STAGE_TOTAL "ml.stage."

/* One call of `decode_spans`. `rest`, `values` and what follows are of the present span. */
typedef struct {
    State *state;
    Bytes begin;
    PyObject *check, *logs, *refused;
    long long taken, refusals;
    Buffer log, rest;
    Value values[MAX_COLUMNS];
    unsigned char present[MAX_COLUMNS]; /* columns that have a value */
    int count;
    bool repeated; /* whether it has one key twice */
} Walk;

typedef enum { DONE, ODD, BAD, FAILED } Outcome; /* ODD: for the reference; BAD: refused; FAILED: with an exception */

static void forget(Walk *walk) {
    while (walk->count > 0) {
        Value *value = &walk->values[walk->present[--walk->count]];
        Py_CLEAR(value->owner);
        value->has = ABSENT;
    }
    walk->rest.size = 0;
    walk->repeated = false;
}

static double as_double(uint64_t bits) {
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Take in a value, which takes a reference to its owner along; the last one of a column counts. */
static void set_value(Walk *walk, int column, Value value) {
    Value *known = &walk->values[column];
    if (known->has == ABSENT) {
        walk->present[walk->count++] = (unsigned char)column;
    } else if (column == OTHER(walk->state)) {
        double sum = as_double(known->bits) + as_double(value.bits);
        memcpy(&value.bits, &sum, sizeof sum);
    } else {
        walk->repeated = true;
    }
    Py_XDECREF(known->owner);
    *known = value;
}

static const Key *find_key(const State *state, const Pair *pair) {
    if (pair->key_size > MAX_KEY) return NULL;
    for (int i = state->first[pair->key_size]; i < state->first[pair->key_size + 1]; i++)
        if (memcmp(state->keys[i].text, pair->key, pair->key_size) == 0) return &state->keys[i];
    return NULL;
}

/* Make a Value of what the reference says belongs into a column. */
static int make_value(Value *value, int kind, PyObject *object) {
    *value = (Value){.has = NUMBER};
    if (object == Py_None) {
        value->has = UNTOLD;
    } else if (kind == STRING) {
        Py_ssize_t size;
        value->text = PyUnicode_AsUTF8AndSize(object, &size);
        if (value->text == NULL) return -1;
        value->has = TEXT;
        value->size = (size_t)size;
        value->owner = object;
        Py_INCREF(object);
    } else if (kind == DOUBLE) {
        double number = PyFloat_AsDouble(object);
        memcpy(&value->bits, &number, sizeof number);
    } else {
        value->bits = (uint64_t)PyLong_AsLongLong(object); /* a bool is an int */
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Take in an attribute, the field at `at`, by what the reference says of the pair at `first`. */
static Outcome take_odd_attribute(Walk *walk, Bytes at, Bytes first, Bytes after) {
    PyObject **held = walk->state->held, *column, *object, *kept;
    PyObject *pair = bytes_of(first, after), *written = NULL;
    PyObject *meaning = pair ? PyObject_CallFunctionObjArgs(held[MEANING], pair, NULL) : NULL;
    Outcome outcome = FAILED;
    if (meaning == NULL || !PyArg_ParseTuple(meaning, "OOO", &column, &object, &kept)) goto done;
    if (column != Py_None) {
        long place = PyLong_AsLong(column);
        if (PyErr_Occurred()) goto done;
        if (place < 0 || place > OTHER(walk->state)) {
            fail(PyExc_ValueError, "there is no such column");
            goto done;
        }
        Value value;
        if (make_value(&value, walk->state->kinds[place], object) < 0) goto done;
        set_value(walk, (int)place, value);
    }
    if (kept != Py_None) {
        int same = PyObject_RichCompareBool(kept, pair, Py_EQ);
        if (same == 0) written = PyObject_CallFunctionObjArgs(held[WRITTEN], kept, NULL);
        if (same < 0 || (same == 0 && written == NULL)) goto done;
        if ((same ? put_all(&walk->rest, at, after) : put_bytes(&walk->rest, written)) < 0) goto done;
    }
    outcome = DONE;
done:
    Py_XDECREF(written);
    Py_XDECREF(meaning);
    Py_XDECREF(pair);
    return outcome;
}

static Outcome take_attribute(Walk *walk, Bytes *at, Bytes end) {
    size_t size;
    Bytes field = *at, first = length(field + 1, end, &size);
    if (first == NULL) return ODD;
    Bytes after = *at = first + size;
    Pair pair;
    if (!read_pair(&pair, first, after)) return take_odd_attribute(walk, field, first, after);
    const Key *key = find_key(walk->state, &pair);
    Value value;
    bool told = (key != NULL || !pair.is_short) && read_value(&value, &pair);
    if (key != NULL) {
        told = told && *pair.value == key->tag && (key->tag != DOUBLE || isfinite(as_double(value.bits)));
        if (!told) return take_odd_attribute(walk, field, first, after);
        set_value(walk, key->column, value);
        return DONE;
    }
    size_t prefix = strlen(STAGE_TOTAL);
    bool is_total = pair.key_size >= prefix && memcmp(pair.key, STAGE_TOTAL, prefix) == 0;
    if (is_total || (!pair.is_short && (!told || pair.key_size == 0)))
        return take_odd_attribute(walk, field, first, after);
    return put_all(&walk->rest, field, after) < 0 ? FAILED : DONE;
}

static Outcome take_status(Walk *walk, Row *row, Bytes *at, Bytes end) {
    size_t size;
    Bytes field = *at, first = length(field + 1, end, &size);
    if (first == NULL) return ODD;
    *at = first + size;
    row->has_status = 1;
    row->status = 0;
    if (size == 0) return DONE;
    if (size == 2 && first[0] == CODE && first[1] > 0 && first[1] < MORE) {
        row->status = first[1];
        return DONE;
    }
    PyObject *status = bytes_of(first, first + size);
    PyObject *code = status ? PyObject_CallFunctionObjArgs(walk->state->held[STATUS_CODE], status, NULL) : NULL;
    long number = code ? PyLong_AsLong(code) : -1;
    row->status = (uint32_t)number;
    Py_XDECREF(code);
    Py_XDECREF(status);
    return PyErr_Occurred() || put_all(&walk->rest, field, first + size) < 0 ? FAILED : DONE;
}

static bool is_zero(Bytes at, size_t size) {
    for (; size > 0 && *at == 0; at++) size--;
    return size == 0;
}

static Outcome take_parent(Walk *walk, Row *row, Bytes *at, Bytes end) {
    Bytes field = *at, first = field + 2;
    if (behind(field, end) < 2 || field[1] == 0) return ODD;
    if (field[1] != sizeof row->parent) return BAD;
    if (behind(first, end) < sizeof row->parent) return ODD;
    *at = first + sizeof row->parent;
    if (is_zero(first, sizeof row->parent)) /* some exporters write this of a root */
        return put_all(&walk->rest, field, *at) < 0 ? FAILED : DONE;
    memcpy(row->parent, first, sizeof row->parent);
    row->has_parent = 1;
    return DONE;
}

static Outcome take_time(Walk *walk, int64_t *time, Bytes *at, Bytes end) {
    Bytes field = *at;
    if (behind(field, end) < 9) return ODD;
    uint64_t found = fixed64(field + 1);
    *at = field + 9;
    *time = (int64_t)(found < LATEST_NS ? found : LATEST_NS);
    return found > LATEST_NS && put_all(&walk->rest, field, *at) < 0 ? FAILED : DONE;
}

/* Take in a kind of one byte, and both times if they follow, as they do as a rule. Return what follows. */
static Bytes take_kind(Row *row, Bytes at, Bytes end, int *before) {
    row->kind = at[1];
    at += 2;
    if (behind(at, end) < TIMES || at[0] != START_TIME || at[9] != END_TIME) return at;
    uint64_t start = fixed64(at + 1), stop = fixed64(at + 10);
    if (start > LATEST_NS || stop > LATEST_NS) return at;
    row->start = (int64_t)start;
    row->end = (int64_t)stop;
    *before = END_TIME;
    return at + TIMES;
}

static Outcome take_other(Walk *walk, Bytes *at, Bytes end) {
    Field field;
    if (!read_field(&field, *at, end)) return ODD;
    if (put_all(&walk->rest, *at, field.after) < 0) return FAILED;
    *at = field.after;
    return DONE;
}

/* Read a span into `row`, `name`, and the walk's values and rest. */
static Outcome read_span(Walk *walk, Row *row, Bytes *name, Bytes at, Bytes end) {
    *row = (Row){.start = 0};
    if (behind(at, end) < IDS || memcmp(at, "\x0A\x10", 2) != 0 || memcmp(at + 18, "\x12\x08", 2) != 0
        || is_zero(at + 2, 16) || is_zero(at + 20, 8)) return ODD;
    memcpy(row->trace_id, at + 2, 16);
    memcpy(row->span_id, at + 20, 8);
    at += IDS;
    int before = SPAN_ID;
    while (at < end) {
        Outcome outcome = DONE;
        int tag = *at;
        bool once = tag == TRACE_ID || tag == SPAN_ID || tag == PARENT || tag == NAME || tag == KIND || tag == START_TIME
                    || tag == END_TIME || tag == STATUS;
        if (once && tag <= before) return ODD;
        if (once) before = tag;
        if (tag == ATTRIBUTE) {
            outcome = take_attribute(walk, &at, end);
        } else if (tag == FLAGS && behind(at, end) >= 6 && at[1] == 1) {
            row->flags = (uint32_t)at[2] | (uint32_t)at[3] << 8 | (uint32_t)at[4] << 16 | (uint32_t)at[5] << 24;
            at += 6;
        } else if (tag == PARENT) {
            outcome = take_parent(walk, row, &at, end);
        } else if (tag == NAME) {
            size_t size;
            *name = length(at + 1, end, &size);
            if (*name == NULL || size > UINT32_MAX) return ODD;
            row->name = (uint32_t)size;
            at = *name + size;
        } else if (tag == KIND && behind(at, end) > 1 && at[1] < MORE) {
            at = take_kind(row, at, end, &before);
        } else if (tag == START_TIME || tag == END_TIME) {
            outcome = take_time(walk, tag == START_TIME ? &row->start : &row->end, &at, end);
        } else if (tag == STATUS) {
            outcome = take_status(walk, row, &at, end);
        } else {
            outcome = take_other(walk, &at, end);
        }
        if (outcome != DONE) return outcome;
    }
    return DONE;
}

/* Begin another log unless so many bytes more fit in: what grows without end is copied again and again. */
enum { PAGE = 1 << 18 };
static int turn_page(Walk *walk, size_t more) {
    if (walk->log.size == 0 || walk->log.size + more <= PAGE) return 0;
    PyObject *log = bytes_in(&walk->log);
    int result = log ? PyList_Append(walk->logs, log) : -1;
    Py_XDECREF(log);
    walk->log.size = 0;
    return result;
}

static void put_value(Buffer *log, int column, const Value *value) {
    Head head = {.column = (uint32_t)column, .size = NO_VALUE};
    if (value->has != UNTOLD) head.size = value->has == TEXT ? (uint32_t)value->size : (uint32_t)sizeof value->bits;
    put(log, &head, sizeof head);
    if (value->has == TEXT) put(log, value->text, value->size);
    else if (value->has == NUMBER) put(log, &value->bits, sizeof value->bits);
}

static int write_span(Walk *walk, Row *row, Bytes name) {
    if (walk->rest.size > 0) {
        Value rest = {.has = TEXT};
        rest.text = walk->rest.data;
        rest.size = walk->rest.size;
        set_value(walk, REST(walk->state), rest);
    }
    size_t size = row->name;
    for (int i = 0; i < walk->count; i++) {
        const Value *value = &walk->values[walk->present[i]];
        size_t more = value->has == TEXT ? value->size : value->has == NUMBER ? sizeof value->bits : 0;
        size += sizeof(Head) + more; /* all of it is in memory, so that the sum cannot overflow */
    }
    if (size >= NO_VALUE) return fail(PyExc_OverflowError, "a span of 4 GiB");
    row->size = (uint32_t)size;
    if (turn_page(walk, sizeof *row + size) < 0 || !reserve(&walk->log, sizeof *row + size)) return -1;
    put(&walk->log, row, sizeof *row);
    if (row->name) put(&walk->log, name, row->name);
    for (int i = 0; i < walk->count; i++) {
        int column = walk->present[i];
        put_value(&walk->log, column, &walk->values[column]);
    }
    walk->taken++;
    return 0;
}

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

/* If the present exception is `Refused`, refuse the span for what that says. */
static int refuse_as_raised(Walk *walk) {
    if (!PyErr_ExceptionMatches(walk->state->held[REFUSED])) return -1;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *why = PyObject_Str(error);
    int result = why ? refuse(walk, why) : -1;
    Py_XDECREF(why);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return result;
}

/* Put all attributes of `span` into the rest, as the reference does where a key comes twice. */
static int keep_all(Walk *walk, PyObject *span) {
    PyObject *rest = bytes_in(&walk->rest);
    PyObject *all = rest ? PyObject_CallFunctionObjArgs(walk->state->held[ALL_ATTRIBUTES], span, rest, NULL) : NULL;
    walk->rest.size = 0;
    int result = all ? put_bytes(&walk->rest, all) : -1;
    Py_XDECREF(all);
    Py_XDECREF(rest);
    return result;
}

/* Read a span that is not written as encoders do, by way of the reference, whose `pair` the row then relies on. */
static Outcome read_odd_span(Walk *walk, Row *row, Bytes *name, PyObject *span, PyObject **pair) {
    PyObject *plain, *unknown;
    char *data;
    Py_ssize_t size;
    forget(walk);
    *pair = PyObject_CallFunctionObjArgs(walk->state->held[STRAIGHTENED], span, NULL);
    if (*pair == NULL || !PyArg_ParseTuple(*pair, "SS", &plain, &unknown)) return FAILED;
    if (PyBytes_AsStringAndSize(plain, &data, &size) < 0) return FAILED;
    Outcome outcome = read_span(walk, row, name, (Bytes)data, (Bytes)data + size);
    if (outcome == ODD) fail(PyExc_ValueError, "a span that stays odd");
    if (outcome == DONE && put_bytes(&walk->rest, unknown) < 0) return FAILED;
    return outcome == ODD ? FAILED : outcome;
}

static int take_span(Walk *walk, Bytes first, Bytes after) {
    Row row;
    Bytes name = NULL;
    PyObject *span = NULL, *pair = NULL;
    Outcome outcome = read_span(walk, &row, &name, first, after);
    if (outcome == ODD || (outcome == DONE && walk->repeated)) {
        span = bytes_of(first, after);
        if (span == NULL) outcome = FAILED;
        else if (outcome == ODD) outcome = read_odd_span(walk, &row, &name, span, &pair);
    }
    if (outcome == DONE && walk->repeated && keep_all(walk, span) < 0) outcome = FAILED;
    int result = outcome == DONE   ? write_span(walk, &row, name)
                 : outcome == BAD  ? refuse(walk, walk->state->held[BAD_PARENT])
                                   : refuse_as_raised(walk);
    forget(walk);
    Py_XDECREF(pair);
    Py_XDECREF(span);
    return result;
}

/* Ask `check` for what is wrong with a span, and refuse it for that. Return whether it has been refused. */
static int is_refused(Walk *walk, const uint64_t *place) {
    if (walk->check == Py_None) return 0;
    PyObject *why = PyObject_CallFunction(walk->check, "KK", place[0], place[1]);
    if (why == NULL) return -1;
    int bad = PyObject_IsTrue(why);
    if (bad > 0 && refuse(walk, why) < 0) bad = -1;
    Py_DECREF(why);
    return bad;
}

static int take_spans(Walk *walk, size_t size, const char *held, size_t held_size, long long most) {
    uint64_t place[2];
    for (size_t at = 0; at < held_size && walk->refusals <= most; at += sizeof place) {
        memcpy(place, held + at, sizeof place);
        if (place[0] > place[1] || place[1] > size) return fail(PyExc_ValueError, "a span behind the data");
        int refused = is_refused(walk, place);
        if (refused < 0 || (!refused && take_span(walk, walk->begin + place[0], walk->begin + place[1]) < 0)) return -1;
    }
    return turn_page(walk, PAGE + 1);
}

PyObject *decode_spans(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    char *data, *held;
    Py_ssize_t size, held_size;
    if (given != 4) {
        fail(PyExc_TypeError, "decode_spans takes two bytes, a callable or None, and an int");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0 || PyBytes_AsStringAndSize(args[1], &held, &held_size) < 0)
        return NULL;
    long long most = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    if (held_size % (Py_ssize_t)(2 * sizeof(uint64_t))) {
        fail(PyExc_ValueError, "half a pair of places");
        return NULL;
    }
    Walk one = {.state = decoder_state(module), .begin = (Bytes)data, .check = args[2]};
    open_buffer(&one.log);
    open_buffer(&one.rest);
    one.logs = PyList_New(0);
    one.refused = PyDict_New();
    PyObject *result = NULL;
    if (one.logs != NULL && one.refused != NULL && take_spans(&one, (size_t)size, held, (size_t)held_size, most) == 0)
        result = Py_BuildValue("(LOO)", one.taken, one.logs, one.refused);
    Py_XDECREF(one.logs);
    Py_XDECREF(one.refused);
    close_buffer(&one.log);
    close_buffer(&one.rest);
    return result;
}
