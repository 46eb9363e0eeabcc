/* `parts_in_python` of decode/spans.py in C. */
#include "decoder.h"

enum { LEAST = 28, LARGEST = 16 << 20 };

/* One call of `decode_parts`. */
typedef struct {
    uint32_t held_tag;
    Buffer around, held;
    long long small;
    bool broken, large;
} Parts;

static int take_apart(Parts *parts, Bytes begin, Bytes at, Bytes end, long long most) {
    Field field;
    for (; at < end && parts->small <= most; at = field.after) {
        parts->broken = !read_field(&field, at, end);
        if (parts->broken) return 0;
        bool is_held = field.tag == parts->held_tag;
        if (is_held && behind(field.first, field.after) < LEAST) {
            parts->small++;
        } else if (is_held) {
            uint64_t pair[2] = {behind(begin, field.first), behind(begin, field.after)};
            if (put_all(&parts->held, pair, sizeof pair) < 0) return -1;
        } else if (behind(at, field.after) > LARGEST) {
            parts->large = true;
            parts->around.size = parts->held.size = 0;
            return 0;
        } else if (put_all(&parts->around, at, behind(at, field.after)) < 0) {
            return -1;
        }
    }
    return 0;
}

PyObject *decode_parts(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    char *data;
    Py_ssize_t size;
    if (given != 5) return PyErr_Format(PyExc_TypeError, "decode_parts takes bytes and four int");
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0) return NULL;
    Py_ssize_t at = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]);
    long long most = PyLong_AsLongLong(args[3]);
    unsigned long tag = PyLong_AsUnsignedLong(args[4]);
    if (PyErr_Occurred()) return NULL;
    if (at < 0 || at > end || end > size)
        return PyErr_Format(PyExc_ValueError, "a message ends before it begins, or behind the data");
    Bytes begin = (Bytes)data;
    Parts found = {.held_tag = (uint32_t)tag};
    open_buffer(&found.around);
    open_buffer(&found.held);
    PyObject *result = NULL;
    if (take_apart(&found, begin, begin + at, begin + end, most) == 0)
        result = Py_BuildValue("(NNLNN)", bytes_in(&found.around), bytes_in(&found.held), found.small,
                               PyBool_FromLong(found.broken), PyBool_FromLong(found.large));
    close_buffer(&found.around);
    close_buffer(&found.held);
    return result;
}
