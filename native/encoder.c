/* `tiled` and `request` of request_encoder.py in C: the same to the byte, for a fraction of the CPU (docs/decisions/011).
 *
 * What they do and why is said where the reference is: recording/tiler.py tiles, otlp/encode/span_encoder.py encodes. Here
 * are only requests of at most 127 events, whose stages have been given out as no span's parent, so there is nothing to
 * sum up and no context. Whatever else comes in raises, and request_encoder.py takes the reference.
 */
#include "encoder.h"

static PyObject *dict_of(const Totals *totals, const Tiling *tiling) {
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < totals->stages; i++) {
        int stage = totals->order[i];
        PyObject *sum = PyLong_FromLongLong(totals->sums[stage]);
        if (sum == NULL || PyDict_SetItem(result, tiling->names[stage], sum) < 0) Py_CLEAR(result);
        Py_XDECREF(sum);
    }
    return result;
}

/* As `tile`, if `ids` are enough for each event and one more. */
static int tile_with(Tiling *tiling, PyObject *module, PyObject *events, const int64_t *times, PyObject *ids,
                     const int64_t *cuts) {
    int count = tile(tiling, encoder_held(module), events, times, cuts);
    if (count >= 0 && PyBytes_Size(ids) < 8 * (PyTuple_Size(tiling->events) + 1))
        return fail(PyExc_ValueError, "too few ids");
    return count;
}

static PyObject *encode_stages(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    int64_t times[3], cuts[MAX_CUTS + 1] = {0};
    if ((given != 7 && given != 8) || !PyList_Check(args[0]) || !PyBytes_Check(args[4]) || !PyBytes_Check(args[5])
        || !PyBytes_Check(args[6])) {
        fail(PyExc_TypeError, "encode_stages takes a list, three int, three bytes and perhaps a tuple");
        return NULL;
    }
    if (read_times(times, args + 1, 3) < 0 || (given == 8 && read_cuts(args[7], cuts) < 0)) return NULL;
    Tiling tiling;
    Buffer buffer;
    open_buffer(&buffer);
    PyObject *result = NULL, *totals = NULL;
    int count = tile_with(&tiling, module, args[0], times, args[5], cuts);
    if (count >= 0 && put_stages(&buffer, &tiling, count, args[4], PyBytes_AsString(args[5]), args[6]) == 0) {
        Totals sums;
        add_up(&sums, &tiling, count);
        totals = dict_of(&sums, &tiling);
    }
    if (totals != NULL) {
        PyObject *model = tiling.model ? tiling.model : tiling.held[NO_ATTRIBUTES];
        result = Py_BuildValue("(y#iOO)", buffer.data, (Py_ssize_t)buffer.size, count, totals, model);
    }
    Py_XDECREF(totals);
    close_buffer(&buffer);
    release_tiling(&tiling);
    return result;
}

static PyObject *encode_request(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    int64_t times[3], cuts[MAX_CUTS + 1] = {0};
    if ((given != 8 && given != 9) || !PyList_Check(args[0]) || !is_identity(args[3]) || !PyBytes_Check(args[4])
        || !PyBytes_Check(args[5]) || !PyBytes_Check(args[6])) {
        fail(PyExc_TypeError, "encode_request takes a list, two int, an Identity, three bytes, a mapping and perhaps a tuple");
        return NULL;
    }
    if (read_times(times, args + 1, 2) < 0 || (given == 9 && read_cuts(args[8], cuts) < 0)) return NULL;
    times[2] = times[1];
    if (times[2] < 0) {
        fail(PyExc_OverflowError, "an end before 1970");
        return NULL;
    }
    PyObject *head = make_head(encoder_held(module), PyTuple_GetItem(args[3], 0));
    if (head == NULL) return NULL;
    Entry entry = {.identity = args[3], .rest = args[6], .attributes = args[7]};
    Tiling tiling;
    Buffer buffer;
    open_buffer(&buffer);
    PyObject *result = NULL;
    int count = tile_with(&tiling, module, args[0], times, args[4], cuts);
    if (count >= 0 && put_stages(&buffer, &tiling, count, head, PyBytes_AsString(args[4]), args[5]) == 0
        && put_entry(&buffer, &tiling, count, head, times, &entry) == 0)
        result = Py_BuildValue("(y#i)", buffer.data, (Py_ssize_t)buffer.size, count + 1);
    close_buffer(&buffer);
    release_tiling(&tiling);
    Py_DECREF(head);
    return result;
}

static int fill(PyObject *module) {
    PyObject **held = encoder_held(module);
    return read_tiling_held(held) < 0 ? -1 : fill_tails(held);
}

static PyMethodDef functions[] = {
    {"encode_stages", (PyCFunction)(void (*)(void))encode_stages, METH_FASTCALL,
     "encode_stages(events, start, now, end, head, ids, mark, cuts)"},
    {"encode_request", (PyCFunction)(void (*)(void))encode_request, METH_FASTCALL,
     "encode_request(events, start, end, identity, ids, mark, rest, attributes, cuts)"},
    {NULL, NULL, 0, NULL},
};

const Group encoder_group = {"encoder", functions, fill};
