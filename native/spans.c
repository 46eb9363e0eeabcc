/* Stages and entry spans as bytes: what otlp/encode/span_encoder.py encodes of a request, in C (docs/decisions/011). */
#include "encoder.h"

#ifdef Py_GIL_DISABLED
#define LOCK Py_BEGIN_CRITICAL_SECTION
#define UNLOCK Py_END_CRITICAL_SECTION
#else
#define LOCK(object)
#define UNLOCK()
#endif

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

/* Put what `_append_attributes` appends. */
static int put_attributes(Buffer *buffer, PyObject *const *held, PyObject *attributes) {
    size_t before = buffer->size;
    if (put_usual(buffer, attributes)) return 0;
    buffer->size = before;
    PyObject *parts = PyList_New(0);
    PyObject *done = parts ? PyObject_CallFunctionObjArgs(held[APPEND_ATTRIBUTES], parts, attributes, NULL) : NULL;
    int result = done ? 0 : -1;
    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(parts); i++)
        result = put_bytes(buffer, PyList_GetItem(parts, i));
    Py_XDECREF(done);
    Py_XDECREF(parts);
    return result;
}

/* Put what `stage_tail` returns of a name. */
static int put_name(Buffer *buffer, PyObject *const *held, PyObject *name) {
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

/* What `put_name` puts of the stages that are known, from the import on. */
enum { TAIL = 96 };
static struct { size_t size; char bytes[TAIL]; } tails[KNOWN];

int fill_tails(PyObject *const *held) {
    Buffer buffer;
    open_buffer(&buffer);
    int result = 0;
    for (int stage = 0; stage < KNOWN && result == 0; stage++) {
        buffer.size = 0;
        result = put_name(&buffer, held, held[stage]);
        tails[stage].size = result == 0 && buffer.size <= TAIL ? buffer.size : 0;
        memcpy(tails[stage].bytes, buffer.data, tails[stage].size);
    }
    close_buffer(&buffer);
    return result;
}

/* Put what a segment says of the visits that it stands for. */
static int put_visits(Buffer *buffer, const Tiling *tiling, const Segment *segment) {
    PyObject *visits = PyLong_FromLong(segment->visits), *longest = PyFloat_FromDouble((double)segment->longest / 1e6);
    bool done = visits && longest && put_pair(buffer, tiling->held[COALESCED], visits)
                && put_pair(buffer, tiling->held[LONGEST_MS], longest);
    Py_XDECREF(visits);
    Py_XDECREF(longest);
    if (!done && !PyErr_Occurred()) return fail(PyExc_RuntimeError, "a number cannot be put");
    return done ? 0 : -1;
}

/* Put what `stage_tail` returns. */
static int put_tail(Buffer *buffer, Tiling *tiling, const Segment *segment, PyObject *mark) {
    int stage = segment->stage;
    size_t size = stage < KNOWN ? tails[stage].size : 0;
    if (size == 0) {
        if (put_name(buffer, tiling->held, tiling->names[stage]) < 0) return -1;
    } else {
        if (!reserve(buffer, TAIL)) return -1;
        put(buffer, tails[stage].bytes, size);
    }
    if (put_bytes(buffer, mark) < 0) return -1;
    if (segment->attributes && put_attributes(buffer, tiling->held, segment->attributes) < 0) return -1;
    return segment->visits ? put_visits(buffer, tiling, segment) : 0;
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

/* Put the spans of the first `count` segments; there are eight bytes from `id` on for each. */
int put_stages(Buffer *buffer, Tiling *tiling, int count, PyObject *head, const char *id, PyObject *mark) {
    size_t head_size = (size_t)PyBytes_Size(head);
    const char *shared = PyBytes_AsString(head);
    for (Segment *segment = tiling->segments; segment < tiling->segments + count; segment++, id += 8) {
        if (!reserve(buffer, head_size + 2 * HEADS)) return -1;
        size_t begin = open_span(buffer);
        put(buffer, shared, head_size);
        put_field(buffer, 0x12, id, 8);
        put_times(buffer, segment->start, segment->end);
        if (put_tail(buffer, tiling, segment, mark) < 0) return -1;
        if (close_span(buffer, begin) < 0) return -1;
    }
    return 0;
}

void add_up(Totals *totals, const Tiling *tiling, int count) {
    memset(totals->sums, 0, (size_t)tiling->named * sizeof *totals->sums);
    totals->stages = 0;
    for (const Segment *segment = tiling->segments; segment < tiling->segments + count; segment++) {
        int64_t *sum = &totals->sums[segment->stage];
        if (*sum == 0) totals->order[totals->stages++] = segment->stage; /* no segment is empty */
        *sum += segment->end - segment->start;
    }
}

/* Put totals as attributes in milliseconds, named as `stage_total_ms` does. */
static int put_totals(Buffer *buffer, const Totals *totals, const Tiling *tiling) {
    for (int i = 0; i < totals->stages; i++) {
        int stage = totals->order[i];
        Py_ssize_t length;
        const char *name = PyUnicode_AsUTF8AndSize(tiling->names[stage], &length);
        if (name == NULL || !reserve(buffer, (size_t)length + HEADS)) return -1;
        size_t key_size = strlen("ml.stage.") + (size_t)length + strlen(".ms");
        put_head(buffer, 0x4A, field_size(key_size) + field_size(9));
        put_head(buffer, 0x0A, key_size);
        put(buffer, "ml.stage.", strlen("ml.stage."));
        put(buffer, name, (size_t)length);
        put(buffer, ".ms", strlen(".ms"));
        put_head(buffer, 0x12, 9);
        put_double(buffer, 0x21, (double)totals->sums[stage] / 1e6);
    }
    return 0;
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

bool is_identity(PyObject *object) {
    if (!PyTuple_Check(object) || PyTuple_Size(object) != 3 || !is_context(PyTuple_GetItem(object, 0))) return false;
    PyObject *parent = PyTuple_GetItem(object, 1);
    return parent == Py_None || is_context(parent);
}

/* Return what `stage_head` returns: at these places the trace id, the entry span's id, all of the state's field. */
enum { TRACE_ID = 2, ENTRY_ID = 20, STATE = 28 };
PyObject *make_head(PyObject *const *held, PyObject *context) {
    PyObject *state = PyTuple_GetItem(context, 4);
    int any = state == held[NO_STATE] ? 0 : PyObject_IsTrue(state); /* else a call into Python, of most requests */
    if (any < 0) return NULL;
    PyObject *field = any ? PyObject_CallFunctionObjArgs(held[TRACE_STATE], state, NULL) : PyBytes_FromString("");
    char *bytes, *into;
    Py_ssize_t size;
    bool done = field != NULL && PyBytes_AsStringAndSize(field, &bytes, &size) == 0;
    PyObject *head = done ? PyBytes_FromStringAndSize(NULL, STATE + size) : NULL;
    if (head != NULL) {
        into = PyBytes_AsString(head);
        memcpy(into, "\x0A\x10", 2);
        memcpy(into + ENTRY_ID - 2, "\x22\x08", 2);
        memcpy(into + STATE, bytes, (size_t)size);
        if (read_trace_id(into + TRACE_ID, PyTuple_GetItem(context, 0)) < 0
            || read_id(into + ENTRY_ID, PyTuple_GetItem(context, 1)) < 0) Py_CLEAR(head);
    }
    Py_XDECREF(field);
    return head;
}

/* Put the entry span of a request of `count` stages. */
int put_entry(Buffer *buffer, const Tiling *tiling, int count, PyObject *head, const int64_t *times,
                            const Entry *entry) {
    PyObject *parent = PyTuple_GetItem(entry->identity, 1), *rest = entry->rest, *client = entry->client;
    const char *ids = PyBytes_AsString(head);
    size_t rest_size = (size_t)PyBytes_Size(rest), state_size = (size_t)PyBytes_Size(head) - STATE;
    size_t client_size = client ? (size_t)PyBytes_Size(client) : 0;
    if (!reserve(buffer, rest_size + client_size + state_size + 2 * HEADS)) return -1;
    size_t begin = open_span(buffer);
    put(buffer, ids, TRACE_ID + 16);
    put_field(buffer, 0x12, ids + ENTRY_ID, 8);
    put(buffer, PyBytes_AsString(rest), rest_size);
    if (client_size) put(buffer, PyBytes_AsString(client), client_size);
    put_times(buffer, times[0], times[2]);
    put(buffer, ids + STATE, state_size);
    if (parent == Py_None) {
        put(buffer, "\x85\x01\x00\x01\x00\x00", 6); /* flags: it is known that the parent is not remote */
    } else {
        char id[8];
        if (read_id(id, PyTuple_GetItem(parent, 1)) < 0) return -1;
        put_field(buffer, 0x22, id, 8);
        put(buffer, "\x85\x01\x00\x03\x00\x00", 6); /* and that it is */
    }
    Totals totals;
    add_up(&totals, tiling, count);
    if (put_totals(buffer, &totals, tiling) < 0) return -1;
    if (tiling->model != NULL && put_attributes(buffer, tiling->held, tiling->model) < 0) return -1;
    if (put_attributes(buffer, tiling->held, entry->attributes) < 0) return -1;
    return close_span(buffer, begin);
}
