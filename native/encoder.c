/* `encode_request` of otlp/encode.py in C: all spans of a request as bytes (docs/decisions/011). */
#include "record.h"

enum { ML_STAGE, COALESCED, LONGEST_MS, ENCODE_ATTRIBUTES, ENCODE_LINK, STAGE_HEAD, NO_STATE, RANDOM_BYTES, HELD };
static PyObject *held[HELD];
#define ENCODER "stagetrace.otlp.encode"
static const char *const WHERE[HELD][2] = {
    {"stagetrace.semconv", "ML_STAGE"}, {"stagetrace.semconv", "ML_STAGE_COALESCED"},
    {"stagetrace.semconv", "ML_STAGE_COALESCED_LONGEST_MS"}, {ENCODER, "encode_attributes"}, {ENCODER, "encode_link"},
    {ENCODER, "stage_head"}, {"stagetrace.tracing.span_context", "NO_STATE"}, {"random", "randbytes"},
};

/* Enough for the tags and lengths of a span or of one attribute, and for a number. */
#define HEADS 64

/* Put a tag and a length, or a number. What is written may alias the buffer's own size, so that is kept out of the loop. */
static void put_head(Buffer *buffer, char tag, uint64_t size) {
    char *at = buffer->data + buffer->size;
    *at++ = tag;
    for (; size > 0x7F; size >>= 7) *at++ = (char)(size | 0x80);
    *at++ = (char)size;
    buffer->size = (size_t)(at - buffer->data);
}

static void put_field(Buffer *buffer, char tag, const char *bytes, size_t size) {
    put_head(buffer, tag, size);
    put(buffer, bytes, size);
}

static void put_fixed64(Buffer *buffer, char tag, uint64_t number) {
    char *at = buffer->data + buffer->size;
    *at++ = tag;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(at, &number, 8);
#else
    for (int i = 0; i < 8; i++) at[i] = (char)(number >> 8 * i);
#endif
    buffer->size += 9;
}

static void put_double(Buffer *buffer, char tag, double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    put_fixed64(buffer, tag, bits);
}

static size_t varint_size(uint64_t number) {
    size_t size = 1;
    for (; number > 0x7F; number >>= 7) size++;
    return size;
}

static size_t field_size(size_t size) { return 1 + varint_size(size) + size; }

/* Put a span's attribute up to its AnyValue, which has `size` bytes. */
static void put_key(Buffer *buffer, const char *key, size_t key_size, size_t size) {
    put_head(buffer, 0x4A, field_size(key_size) + field_size(size));
    put_field(buffer, 0x0A, key, key_size);
    put_head(buffer, 0x12, size);
}

/* Put an attribute. Return whether it is one of the usual kinds; where not, an exception may be set. */
static bool put_pair(Buffer *buffer, PyObject *key, PyObject *value) {
    Py_ssize_t key_length, length = 0;
    const char *name = PyUnicode_CheckExact(key) ? PyUnicode_AsUTF8AndSize(key, &key_length) : NULL;
    if (name == NULL) return false;
    bool is_text = PyUnicode_CheckExact(value);
    const char *text = is_text ? PyUnicode_AsUTF8AndSize(value, &length) : NULL;
    size_t key_size = (size_t)key_length, size = (size_t)length;
    if ((is_text && text == NULL) || !reserve(buffer, key_size + size + HEADS)) return false;
    if (is_text) {
        put_key(buffer, name, key_size, field_size(size));
        put_field(buffer, 0x0A, text, size);
    } else if (PyBool_Check(value)) {
        put_key(buffer, name, key_size, 2);
        put_head(buffer, 0x10, value == Py_True);
    } else if (PyLong_CheckExact(value)) {
        long long number = PyLong_AsLongLong(value);
        if (number == -1 && PyErr_Occurred()) return false;
        put_key(buffer, name, key_size, 1 + varint_size((uint64_t)number));
        put_head(buffer, 0x18, (uint64_t)number);
    } else if (PyFloat_CheckExact(value)) {
        put_key(buffer, name, key_size, 9);
        put_double(buffer, 0x21, PyFloat_AsDouble(value));
    } else {
        return false;
    }
    return true;
}

/* Put attributes. Return false, without an exception, if there are unusual ones among them. */
static bool put_usual(Buffer *buffer, PyObject *attributes) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (!PyDict_CheckExact(attributes)) return false;
    bool usual = true;
    /* Nothing in the loop runs anybody's code, so that the dict does not change under it. */
    LOCK(attributes);
    while (usual && PyDict_Next(attributes, &at, &key, &value)) usual = put_pair(buffer, key, value);
    UNLOCK();
    if (!usual) PyErr_Clear();
    return usual;
}

/* Put what a function of the reference returns for an object. */
static int put_returned(Buffer *buffer, PyObject *function, PyObject *object) {
    PyObject *bytes = PyObject_CallFunctionObjArgs(function, object, NULL);
    int result = bytes ? put_bytes(buffer, bytes) : -1;
    Py_XDECREF(bytes);
    return result;
}

static int put_attributes(Buffer *buffer, PyObject *attributes) {
    size_t before = buffer->size;
    if (put_usual(buffer, attributes)) return 0;
    buffer->size = before;
    return put_returned(buffer, held[ENCODE_ATTRIBUTES], attributes);
}

/* Put what `stage_tail` returns of a name. */
static int put_name(Buffer *buffer, PyObject *name) {
    Py_ssize_t length, key_length;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    const char *key = text ? PyUnicode_AsUTF8AndSize(held[ML_STAGE], &key_length) : NULL;
    if (key == NULL) return -1;
    size_t size = (size_t)length;
    if (!reserve(buffer, 2 * size + (size_t)key_length + 2 * HEADS)) return -1;
    put_field(buffer, 0x2A, text, size); /* never empty: GAP has been named */
    put(buffer, "\x30\x01\x85\x01\x00\x01\x00\x00", 8); /* kind: internal; flags: the parent is not remote */
    put_key(buffer, key, (size_t)key_length, field_size(size));
    put_field(buffer, 0x0A, text, size);
    put(buffer, "\x7A\x00", 2); /* status: unset */
    return 0;
}

/* Put what a segment says of the visits that it stands for. */
static int put_visits(Buffer *buffer, const Segment *segment) {
    PyObject *visits = PyLong_FromLong(segment->visits), *longest = PyFloat_FromDouble((double)segment->longest / 1e6);
    bool done = visits && longest && put_pair(buffer, held[COALESCED], visits)
                && put_pair(buffer, held[LONGEST_MS], longest);
    Py_XDECREF(visits);
    Py_XDECREF(longest);
    if (!done && !PyErr_Occurred()) return fail(PyExc_RuntimeError, "a number cannot be put");
    return done ? 0 : -1;
}

/* Put what `stage_tail` returns. */
static int put_tail(Buffer *buffer, const Tiling *tiling, const Segment *segment, PyObject *mark) {
    if (put_name(buffer, stage_name(tiling, segment->stage)) < 0 || put_bytes(buffer, mark) < 0) return -1;
    if (segment->attributes && put_attributes(buffer, segment->attributes) < 0) return -1;
    if (segment->visits && put_visits(buffer, segment) < 0) return -1;
    return segment->link ? put_returned(buffer, held[ENCODE_LINK], segment->link) : 0;
}

/* Leave room for a span's tag and length, in what has been reserved. Return where it begins. */
enum { GUESS = 3 }; /* bytes before a span of 128 to 16,383 */
static size_t open_span(Buffer *buffer) {
    buffer->size += GUESS;
    return buffer->size - GUESS;
}

static int close_span(Buffer *buffer, size_t begin) {
    size_t size = buffer->size - begin - GUESS, needed = 1 + varint_size(size);
    if (needed != GUESS) {
        if (!reserve(buffer, HEADS)) return -1;
        memmove(buffer->data + begin + needed, buffer->data + begin + GUESS, size);
    }
    buffer->size = begin;
    put_head(buffer, 0x12, size);
    buffer->size += size;
    return 0;
}

static void put_times(Buffer *buffer, int64_t start, int64_t end) {
    put_fixed64(buffer, 0x39, (uint64_t)start);
    put_fixed64(buffer, 0x41, (uint64_t)end);
}

static void write_id(char *into, uint64_t id) {
    for (int i = 0; i < 8; i++) into[i] = (char)(id >> (56 - 8 * i));
}

static int read_id(char *into, PyObject *number) {
    uint64_t id = PyLong_AsUnsignedLongLong(number);
    if (id == UINT64_MAX && PyErr_Occurred()) return -1;
    write_id(into, id);
    return 0;
}

static int read_trace_id(char *into, PyObject *number) {
    if (!PyLong_CheckExact(number)) return fail(PyExc_TypeError, "a trace id is an int");
    PyObject *bits = PyLong_FromLong(64);
    PyObject *high = bits ? PyNumber_Rshift(number, bits) : NULL;
    int result = high ? read_id(into, high) : -1;
    if (result == 0) write_id(into + 8, PyLong_AsUnsignedLongLongMask(number));
    Py_XDECREF(high);
    Py_XDECREF(bits);
    return result;
}

static bool is_context(PyObject *object) { return PyTuple_Check(object) && PyTuple_Size(object) == 6; }

static bool is_identity(PyObject *object) {
    if (!PyTuple_Check(object) || PyTuple_Size(object) != 3 || !is_context(PyTuple_GetItem(object, 0))) return false;
    PyObject *parent = PyTuple_GetItem(object, 1);
    return parent == Py_None || is_context(parent);
}

/* Return what `stage_head` returns: at these places the trace id, the entry span's id, all of the state's field. */
enum { TRACE_ID = 2, ENTRY_ID = 20, STATE = 28 };
static PyObject *make_head(PyObject *context) {
    char bytes[STATE] = "\x0A\x10";
    PyObject *state = PyTuple_GetItem(context, 4);
    if (state != Py_None && state != held[NO_STATE]) return PyObject_CallFunctionObjArgs(held[STAGE_HEAD], context, NULL);
    memcpy(bytes + ENTRY_ID - 2, "\x22\x08", 2);
    if (read_trace_id(bytes + TRACE_ID, PyTuple_GetItem(context, 0)) < 0
        || read_id(bytes + ENTRY_ID, PyTuple_GetItem(context, 1)) < 0) return NULL;
    return PyBytes_FromStringAndSize(bytes, STATE);
}

/* Put the spans of segments; there are eight bytes of `id` for each. */
static int put_stages(Buffer *buffer, const Tiling *tiling, const Segment *segments, int count, PyObject *head,
                      const char *id, PyObject *mark) {
    size_t head_size = (size_t)PyBytes_Size(head);
    for (const Segment *segment = segments; segment < segments + count; segment++, id += 8) {
        char given[8];
        if (segment->context != NULL) {
            if (!is_context(segment->context)) return fail(PyExc_TypeError, "a stage's context is no SpanContext");
            if (read_id(given, PyTuple_GetItem(segment->context, 1)) < 0) return -1;
        }
        if (!reserve(buffer, head_size + 2 * HEADS)) return -1;
        size_t begin = open_span(buffer);
        put(buffer, PyBytes_AsString(head), head_size);
        put_field(buffer, 0x12, segment->context ? given : id, 8);
        put_times(buffer, segment->start, segment->end);
        if (put_tail(buffer, tiling, segment, mark) < 0 || close_span(buffer, begin) < 0) return -1;
    }
    return 0;
}

/* Put the totals of stages as attributes in milliseconds, named as `stage_total_ms` does. */
static int put_totals(Buffer *buffer, const Tiling *tiling, const Segment *segments, int count) {
    Totals totals;
    if (!add_up(&totals, segments, count)) return -1;
    int result = 0;
    for (int i = 0; result == 0 && i < totals.count; i++) {
        Py_ssize_t length;
        const char *name = PyUnicode_AsUTF8AndSize(stage_name(tiling, totals.of[i].stage), &length);
        if (name == NULL || !reserve(buffer, (size_t)length + HEADS)) {
            result = -1;
            break;
        }
        size_t key_size = strlen("ml.stage.") + (size_t)length + strlen(".ms");
        put_head(buffer, 0x4A, field_size(key_size) + field_size(9));
        put_head(buffer, 0x0A, key_size);
        put(buffer, "ml.stage.", strlen("ml.stage."));
        put(buffer, name, (size_t)length);
        put(buffer, ".ms", strlen(".ms"));
        put_head(buffer, 0x12, 9);
        put_double(buffer, 0x21, (double)totals.of[i].sum / 1e6);
    }
    PyMem_Free(totals.of);
    return result;
}

/* Put the head of the entry span: all that comes before its attributes. */
static int put_entry(Buffer *buffer, PyObject *head, const int64_t *times, PyObject *parent, PyObject *rest) {
    const char *ids = PyBytes_AsString(head);
    size_t rest_size = (size_t)PyBytes_Size(rest), state_size = (size_t)PyBytes_Size(head) - STATE;
    if (!reserve(buffer, rest_size + state_size + 2 * HEADS)) return -1;
    put(buffer, ids, TRACE_ID + 16);
    put_field(buffer, 0x12, ids + ENTRY_ID, 8);
    put(buffer, PyBytes_AsString(rest), rest_size);
    put_times(buffer, times[0], times[1]);
    put(buffer, ids + STATE, state_size);
    if (parent == Py_None) {
        put(buffer, "\x85\x01\x00\x01\x00\x00", 6); /* flags: it is known that the parent is not remote */
    } else {
        char id[8];
        if (read_id(id, PyTuple_GetItem(parent, 1)) < 0) return -1;
        put_field(buffer, 0x22, id, 8);
        put(buffer, "\x85\x01\x00\x03\x00\x00", 6); /* and that it is */
    }
    return 0;
}

enum { STAGES, IDENTITY, TIMES, MARK, REST, ATTRIBUTES, MODEL, CUTS, ARGUMENTS };

/* Put all spans of a request: those of its segments, then the entry span. */
static int put_request(Buffer *buffer, PyObject *const *args, const Segment *segments, int count) {
    int64_t times[2];
    for (int i = 0; i < 2; i++)
        if (read_time(PyTuple_GetItem(args[TIMES], i), &times[i]) < 0) return -1;
    const Tiling *tiling = ((Stages *)args[STAGES])->tiling;
    PyObject *head = make_head(PyTuple_GetItem(args[IDENTITY], 0)), *size = PyLong_FromLong(8L * count);
    PyObject *ids = head && size ? PyObject_CallFunctionObjArgs(held[RANDOM_BYTES], size, NULL) : NULL;
    int result = ids != NULL && PyBytes_Size(ids) == 8L * count && PyBytes_Size(head) >= STATE
                         && put_stages(buffer, tiling, segments, count, head, PyBytes_AsString(ids), args[MARK]) == 0
                         && reserve(buffer, HEADS)
                     ? 0
                     : -1;
    size_t begin = result == 0 ? open_span(buffer) : 0;
    if (result == 0 && (put_entry(buffer, head, times, PyTuple_GetItem(args[IDENTITY], 1), args[REST]) < 0
                        || put_totals(buffer, tiling, segments, count) < 0
                        || put_attributes(buffer, args[MODEL]) < 0 || put_attributes(buffer, args[ATTRIBUTES]) < 0
                        || close_span(buffer, begin) < 0))
        result = -1;
    if (result < 0 && !PyErr_Occurred()) fail(PyExc_TypeError, "no ids, or no head of a span");
    Py_XDECREF(ids);
    Py_XDECREF(size);
    Py_XDECREF(head);
    return result;
}

static PyObject *encode_request(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    int64_t cuts[MAX_CUTS + 1];
    if (given != ARGUMENTS || Py_TYPE(args[STAGES]) != stages_type || !is_identity(args[IDENTITY])
        || !PyTuple_Check(args[TIMES]) || PyTuple_Size(args[TIMES]) != 2 || !PyBytes_Check(args[MARK])
        || !PyBytes_Check(args[REST]))
        return PyErr_Format(PyExc_TypeError, "encode_request takes Stages, an Identity, two int, two bytes, two mappings and cuts");
    if (read_cuts(args[CUTS], cuts) < 0) return NULL;
    const Tiling *tiling = ((Stages *)args[STAGES])->tiling;
    Segment *few;
    int count = coalesce(tiling->segments, tiling->count, cuts, MAX_SEGMENTS, &few);
    if (count < 0) return NULL;
    Buffer buffer;
    open_buffer(&buffer);
    PyObject *result = NULL;
    if (put_request(&buffer, args, few ? few : tiling->segments, count) == 0)
        result = Py_BuildValue("(y#i)", buffer.data, (Py_ssize_t)buffer.size, count + 1);
    close_buffer(&buffer);
    if (few != NULL) free_segments(few, count);
    return result;
}

static int fill(PyObject *Py_UNUSED(module)) { return import_all(held, WHERE, HELD); }

static PyMethodDef functions[] = {
    {"encode_request", (PyCFunction)(void (*)(void))encode_request, METH_FASTCALL,
     "encode_request(stages, identity, times, mark, rest, attributes, model, cuts): see request_encoder.py"},
    {NULL, NULL, 0, NULL},
};

const Group encoder_group = {"encoder", functions, fill};
