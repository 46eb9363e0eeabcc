/* One attribute of many spans, for `store.stored`, out of what spans hold beside the columns. */
#include "decoder.h"

enum { STRANGE = 0xFF }; /* no tag of an AnyValue */

/* Put the last attribute of a span that has the key: its serialized value, nothing if there is none, and of a span that is
 * not written as encoders do STRANGE and all of it. */
static int put_found(Buffer *values, const char *key, size_t key_size, Bytes at, Bytes end) {
    Bytes begin = at;
    Pair pair, found = {.key = NULL};
    Field field;
    for (; at < end; at = field.after) {
        bool is_read = read_field(&field, at, end);
        if (is_read && field.tag >> 3 != ATTRIBUTE >> 3) continue;
        if (!is_read || field.tag != ATTRIBUTE || !read_pair(&pair, field.first, field.after)) {
            char strange = (char)STRANGE;
            return put_all(values, &strange, 1) < 0 ? -1 : put_all(values, begin, behind(begin, end));
        }
        if (pair.key_size == key_size && memcmp(pair.key, key, key_size) == 0) found = pair;
    }
    return found.key ? put_all(values, found.value, behind(found.value, found.end)) : 0;
}

static int put_each(Buffer *starts, Buffer *values, PyObject *const *args) {
    char *data, *offsets, *key;
    Py_ssize_t size, offsets_size, key_size;
    int32_t first, after, end;
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0 || PyBytes_AsStringAndSize(args[1], &offsets, &offsets_size) < 0
        || PyBytes_AsStringAndSize(args[2], &key, &key_size) < 0) return -1;
    for (Py_ssize_t at = 0; at + (Py_ssize_t)sizeof end <= offsets_size; at += (Py_ssize_t)sizeof end) {
        memcpy(&after, offsets + at, sizeof after);
        if (at == 0) first = after;
        if (first < 0 || after < first || after > size) return fail(PyExc_ValueError, "a span behind the data");
        if (put_found(values, key, (size_t)key_size, (Bytes)data + first, (Bytes)data + after) < 0) return -1;
        if (values->size > INT32_MAX) return fail(PyExc_OverflowError, "values of more than 2 GiB");
        end = (int32_t)values->size; /* of what is before the first one: none */
        if (put_all(starts, &end, sizeof end) < 0) return -1;
        first = after;
    }
    return 0;
}

/* Take spans as Arrow has them, their bytes and offsets; return the values in the same form. */
PyObject *find_attribute(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    Buffer starts, values;
    PyObject *result = NULL;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "find_attribute takes three bytes");
    open_buffer(&starts);
    open_buffer(&values);
    if (put_each(&starts, &values, args) == 0) result = Py_BuildValue("(NN)", bytes_in(&starts), bytes_in(&values));
    close_buffer(&starts);
    close_buffer(&values);
    return result;
}
