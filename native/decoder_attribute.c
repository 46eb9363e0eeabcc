/* One attribute of many spans in text form: `store.stored` asks for it out of what spans hold beside the columns.
 *
 * What is not written as encoders do, and lists, maps and bytes, is left to `odd`, which is given the span's bytes.
 */
#include "decoder.h"

#include <inttypes.h>

enum { ATTRIBUTE = 0x4A };

/* One call of `decode_attribute`. The last of several attributes with the key counts. */
typedef struct {
    const char *key;
    size_t key_size;
    const char *known; /* a bit for each span, from bit `bit` on: not set for one that is NULL; or nothing */
    size_t known_size, bit;
    int kind; /* its tag in an AnyValue; 0: any */
    PyObject *odd;
    Buffer validity, starts, texts;
    Py_ssize_t nulls;
} Find;

typedef enum { NOTHING, HERE, STRANGE } Sort;

/* Look for the key in the fields of a span. */
static Sort look(const Find *find, Pair *found, Bytes at, Bytes end) {
    Sort sort = NOTHING;
    while (at < end) {
        Field field;
        if (*at == ATTRIBUTE && behind(at, end) > 1 && at[1] < MORE) {
            field = (Field){at + 2, at + 2 + at[1], 9, true};
            if (at[1] > behind(field.first, end)) return STRANGE;
        } else if (!read_field(&field, at, end)) {
            return STRANGE;
        }
        at = field.after;
        if (field.number != 9) continue;
        Pair pair;
        if (!field.delimited || !read_pair(&pair, field.first, field.after)) return STRANGE;
        if (pair.key_size == find->key_size && memcmp(pair.key, find->key, pair.key_size) == 0) {
            *found = pair;
            sort = HERE;
        }
    }
    return sort;
}

static int put_text(Find *find, const char *text, size_t size) {
    if (!reserve(&find->texts, size)) return -1;
    put(&find->texts, text, size);
    return 1;
}

/* Write a number as `rows.as_text` does: as Python, a whole one without its fraction. */
static int put_double(Find *find, uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    if (value != value) return put_text(find, "NaN", 3);
    char *text = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL) return -1;
    size_t size = strlen(text);
    int result;
    if (strstr(text, "inf") != NULL) result = value > 0 ? put_text(find, "Infinity", 8) : put_text(find, "-Infinity", 9);
    else result = put_text(find, text, size > 2 && strcmp(text + size - 2, ".0") == 0 ? size - 2 : size);
    PyMem_Free(text);
    return result;
}

static int put_value(Find *find, int tag, const Value *value) {
    if (find->kind != 0 && find->kind != tag) return 0;
    if (value->has == TEXT) return put_text(find, value->text, value->size);
    if (tag == BOOL) return value->bits ? put_text(find, "true", 4) : put_text(find, "false", 5);
    if (tag == DOUBLE) return put_double(find, value->bits);
    char text[24];
    int size = PyOS_snprintf(text, sizeof text, "%" PRId64, (int64_t)value->bits);
    return put_text(find, text, (size_t)size);
}

static int put_odd(Find *find, Bytes at, Bytes end) {
    PyObject *span = bytes_of(at, end);
    PyObject *text = span ? PyObject_CallFunctionObjArgs(find->odd, span, NULL) : NULL;
    PyObject *bytes = text && text != Py_None ? PyUnicode_AsUTF8String(text) : NULL;
    int result = text == NULL ? -1 : text == Py_None ? 0 : bytes == NULL || put_bytes(&find->texts, bytes) < 0 ? -1 : 1;
    Py_XDECREF(bytes);
    Py_XDECREF(text);
    Py_XDECREF(span);
    return result;
}

/* Write what one span has: return 1 for a text, 0 for none, -1 with an exception. */
static int take(Find *find, Bytes at, Bytes end) {
    Pair pair;
    Value value;
    Sort sort = look(find, &pair, at, end);
    if (sort == NOTHING) return 0;
    if (sort == HERE && read_value(&value, &pair)) return put_value(find, *pair.value, &value);
    return put_odd(find, at, end);
}

static int take_all(Find *find, const char *data, size_t size, const char *offsets, Py_ssize_t rows) {
    int32_t first, after;
    for (Py_ssize_t row = 0; row < rows; row++) {
        memcpy(&first, offsets + row * (Py_ssize_t)sizeof first, sizeof first);
        memcpy(&after, offsets + (row + 1) * (Py_ssize_t)sizeof after, sizeof after);
        if (first < 0 || after < first || (size_t)after > size) return fail(PyExc_ValueError, "a span behind the data");
        size_t bit = find->bit + (size_t)row;
        if (find->known_size > 0 && bit / 8 >= find->known_size) return fail(PyExc_ValueError, "fewer bits than spans");
        int32_t start = (int32_t)find->texts.size;
        if (row % 8 == 0 && !reserve(&find->validity, 1)) return -1;
        if (row % 8 == 0) put(&find->validity, "", 1);
        if (!reserve(&find->starts, sizeof start)) return -1;
        put(&find->starts, &start, sizeof start);
        bool is_null = find->known_size > 0 && !(find->known[bit / 8] >> bit % 8 & 1);
        int taken = is_null ? 0 : take(find, (Bytes)data + first, (Bytes)data + after);
        if (taken < 0) return -1;
        if (find->texts.size > INT32_MAX) return fail(PyExc_OverflowError, "texts of more than 2 GiB");
        if (taken) find->validity.data[row / 8] |= (char)(1 << row % 8);
        else find->nulls++;
    }
    int32_t end = (int32_t)find->texts.size;
    if (!reserve(&find->starts, sizeof end)) return -1;
    put(&find->starts, &end, sizeof end);
    return 0;
}

PyObject *decode_attribute(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    char *data, *offsets, *known, *key;
    Py_ssize_t size, offsets_size, known_size, key_size;
    if (given != 7) {
        fail(PyExc_TypeError, "decode_attribute takes three bytes, an int, bytes, an int and a callable");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0 || PyBytes_AsStringAndSize(args[1], &offsets, &offsets_size) < 0
        || PyBytes_AsStringAndSize(args[2], &known, &known_size) < 0
        || PyBytes_AsStringAndSize(args[4], &key, &key_size) < 0) return NULL;
    Find one = {.key = key, .key_size = (size_t)key_size, .known = known, .known_size = (size_t)known_size, .odd = args[6]};
    one.bit = PyLong_AsSize_t(args[3]);
    if (PyErr_Occurred()) return NULL;
    one.kind = (int)PyLong_AsLong(args[5]);
    if (PyErr_Occurred()) return NULL;
    Py_ssize_t rows = offsets_size / (Py_ssize_t)sizeof(int32_t) - 1;
    if (rows < 0) {
        fail(PyExc_ValueError, "offsets are one more than there are spans");
        return NULL;
    }
    open_buffer(&one.validity);
    open_buffer(&one.starts);
    open_buffer(&one.texts);
    PyObject *result = NULL;
    if (take_all(&one, data, (size_t)size, offsets, rows) == 0)
        result = Py_BuildValue("(nNNN)", one.nulls, bytes_in(&one.validity), bytes_in(&one.starts), bytes_in(&one.texts));
    close_buffer(&one.validity);
    close_buffer(&one.starts);
    close_buffer(&one.texts);
    return result;
}
