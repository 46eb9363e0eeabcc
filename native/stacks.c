/* Frames of other threads, which CPython 3.11 makes when they are asked for: that may run the collector of garbage, and
 * with it code that lets other threads run. The frame may be gone by then (the process crashes), or a thread may start
 * or end, which waits for a lock that the asking one has (the process hangs). So the collector is off meanwhile, and the
 * GIL is not released: no other thread can see that.
 */
#include "native.h"

static PyObject *frame_type;

static PyObject *uncollected(PyObject *Py_UNUSED(module), PyObject *args) {
    if (PyTuple_Size(args) < 1) return PyErr_Format(PyExc_TypeError, "uncollected takes a function and its arguments");
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_Size(args));
    if (rest == NULL) return NULL;
    int was_on = PyGC_Disable();
    PyObject *result = PyObject_CallObject(PyTuple_GetItem(args, 0), rest);
    if (was_on) PyGC_Enable();
    Py_DECREF(rest);
    return result;
}

/* Add a frame and its place; return the frame that called it, as a new reference. */
static PyObject *step(PyObject *frame, PyObject *frames, PyObject *places) {
    PyCodeObject *code = PyFrame_GetCode((PyFrameObject *)frame);
    int line = PyFrame_GetLineNumber((PyFrameObject *)frame);
    PyObject *place = Py_BuildValue("Ni", code, line < 0 ? 0 : line);
    int failed = place == NULL || PyList_Append(places, place) < 0 || PyList_Append(frames, frame) < 0;
    Py_XDECREF(place);
    return failed ? NULL : PyObject_GetAttrString(frame, "f_back");
}

static PyObject *walk(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *frame;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "On", &frame, &most)) return NULL;
    if (frame != Py_None && Py_TYPE(frame) != (PyTypeObject *)frame_type)
        return PyErr_Format(PyExc_TypeError, "%R is no frame", frame);
    int was_on = PyGC_Disable();
    PyObject *found = Py_BuildValue("([][])");
    Py_INCREF(frame);
    while (found != NULL && frame != Py_None && most-- > 0) {
        PyObject *caller = step(frame, PyTuple_GetItem(found, 0), PyTuple_GetItem(found, 1));
        Py_DECREF(frame);
        frame = caller;
        if (frame == NULL) Py_CLEAR(found);
    }
    Py_XDECREF(frame);
    if (was_on) PyGC_Enable();
    return found;
}

static PyMethodDef functions[] = {
    {"uncollected", uncollected, METH_VARARGS, "Call a function in C with arguments, the collector of garbage off."},
    {"walk", walk, METH_VARARGS,
     "Return a frame and those that called it, at most so many, the innermost first, and their places; of None none."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *Py_UNUSED(module)) {
    static const char *const from[][2] = {{"types", "FrameType"}};
    return import_all(&frame_type, from, 1);
}

const Group stacks_group = {"stacks", functions, fill};
