/* Histograms of how long requests and their stages took: sla/verdict_counter.py in C. */
#include "record.h"
#include <math.h>
#include <structmember.h>

enum { MAX_BUCKETS = 160, MAX_SCALE = 20, EXEMPLARS = 4 }; /* as in verdict_counter.py */

typedef struct {
    PyObject *trace;
    int64_t took, at;
    bool is_preferred, is_old; /* old: collected before */
} Exemplar;

typedef struct {
    uint64_t count, zeros, buckets[MAX_BUCKETS];
    double sum, least, most;
    int scale, first, used; /* first: index of the first bucket */
    int kept;
    Exemplar exemplars[EXEMPLARS];
} State;

typedef struct {
    PyObject_HEAD
    State state;
} Histogram;

/* Requests that are counted alike. `whole` and `by_stage`, a dict of histograms, are NULL where there are none. */
typedef struct {
    PyObject_HEAD
    unsigned long long count;
    PyObject *whole, *by_stage;
    bool is_preferred;
} Series;

static PyTypeObject *histogram_type, *series_type;

static PyObject *allocate(PyTypeObject *type) { return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0); }

static void release(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* --- Histogram */

/* Return the index of the bucket that a number of seconds belongs to: the upper bound of a bucket is within it. */
static int index_of(double value, int scale) {
    int exponent;
    if (frexp(value, &exponent) == 0.5) return (exponent - 1) * (1 << scale) - 1;
    return (int)floor(log(value) * ldexp(1 / log(2), scale));
}

/* Make each bucket as wide as 2 to the power of `by` were before. */
static void merge(State *self, int by) {
    int first = self->first >> by, used = 0;
    for (int i = 0; i < self->used; i++) {
        uint64_t count = self->buckets[i];
        int to = ((self->first + i) >> by) - first; /* never after i */
        self->buckets[i] = 0;
        self->buckets[to] += count;
        used = to + 1;
    }
    self->first = first;
    self->used = used;
    self->scale -= by;
}

static void put_in_bucket(State *self, double value) {
    int at, low, high;
    for (;;) {
        at = index_of(value, self->scale);
        low = self->used && self->first < at ? self->first : at;
        high = self->used && self->first + self->used > at ? self->first + self->used - 1 : at;
        if (high - low < MAX_BUCKETS) break;
        int by = 0;
        while ((high >> by) - (low >> by) >= MAX_BUCKETS) by++;
        merge(self, by);
    }
    if (self->used && low < self->first) {
        int by = self->first - low;
        memmove(self->buckets + by, self->buckets, (size_t)self->used * sizeof *self->buckets);
        memset(self->buckets, 0, (size_t)by * sizeof *self->buckets);
    }
    self->first = low;
    self->used = high - low + 1;
    self->buckets[at - low]++;
}

static void take_value(State *self, int64_t took) {
    double value = took > 0 ? (double)took / 1e9 : 0;
    if (self->count == 0 || value < self->least) self->least = value;
    if (self->count == 0 || value > self->most) self->most = value;
    self->count++;
    self->sum += value;
    if (value > 0) put_in_bucket(self, value);
    else self->zeros++;
}

static bool is_below(const Exemplar *one, const Exemplar *other) {
    if (one->is_old != other->is_old) return one->is_old;
    return one->is_preferred != other->is_preferred ? other->is_preferred : one->took < other->took;
}

/* Keep an exemplar, if there is room or it is above one that is kept. Return the trace that makes room, or NULL. */
static PyObject *take_exemplar(State *self, PyObject *trace, int64_t took, bool is_preferred) {
    Exemplar made = {trace, took, 0, is_preferred, false};
    int at = 0;
    PyObject *before = NULL;
    if (self->kept < EXEMPLARS) {
        at = self->kept++;
    } else {
        for (int i = 1; i < EXEMPLARS; i++)
            if (is_below(&self->exemplars[i], &self->exemplars[at])) at = i;
        if (!is_below(&self->exemplars[at], &made)) return NULL;
        before = self->exemplars[at].trace;
    }
    made.at = clock_ns(CLOCK_REALTIME);
    Py_INCREF(trace);
    self->exemplars[at] = made;
    return before;
}

static void add_to(PyObject *histogram, int64_t took, PyObject *trace, bool is_preferred) {
    PyObject *before = NULL;
    LOCK(histogram);
    State *state = &((Histogram *)histogram)->state;
    take_value(state, took);
    if (trace != Py_None) before = take_exemplar(state, trace, took, is_preferred);
    UNLOCK();
    Py_XDECREF(before);
}

static PyObject *make_histogram(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(named)) {
    PyObject *self = allocate(type);
    if (self != NULL) ((Histogram *)self)->state.scale = MAX_SCALE;
    return self;
}

static void dealloc_histogram(PyObject *self) {
    State *state = &((Histogram *)self)->state;
    while (state->kept) Py_DECREF(state->exemplars[--state->kept].trace);
    release(self);
}

static PyObject *histogram_add(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    int64_t took;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "add takes a time, a trace and whether it is preferred");
    int is_preferred = PyObject_IsTrue(args[2]);
    if (is_preferred < 0 || read_time(args[0], &took) < 0) return NULL;
    add_to(self, took, args[1], is_preferred);
    Py_RETURN_NONE;
}

static PyObject *list_buckets(const State *state) {
    PyObject *list = PyList_New(state->used);
    for (int i = 0; list != NULL && i < state->used; i++) {
        PyObject *count = PyLong_FromUnsignedLongLong(state->buckets[i]);
        if (count == NULL) Py_CLEAR(list);
        else PyList_SetItem(list, i, count);
    }
    return list;
}

static PyObject *list_exemplars(const State *state) {
    PyObject *list = PyList_New(state->kept);
    for (int i = 0; list != NULL && i < state->kept; i++) {
        const Exemplar *one = &state->exemplars[i];
        PyObject *made = Py_BuildValue("(LLO)", (long long)one->took, (long long)one->at, one->trace);
        if (made == NULL) Py_CLEAR(list);
        else PyList_SetItem(list, i, made);
    }
    return list;
}

static PyObject *collect(PyObject *self, PyObject *Py_UNUSED(none)) {
    State copy; /* making the objects below may run anything */
    LOCK(self);
    State *state = &((Histogram *)self)->state;
    copy = *state;
    for (int i = 0; i < copy.kept; i++) {
        Py_INCREF(copy.exemplars[i].trace);
        state->exemplars[i].is_old = true;
    }
    UNLOCK();
    PyObject *buckets = list_buckets(&copy), *exemplars = buckets ? list_exemplars(&copy) : NULL, *made = NULL;
    if (exemplars != NULL)
        made = Py_BuildValue("(KKdddiiOO)", (unsigned long long)copy.count, (unsigned long long)copy.zeros, copy.sum,
                             copy.least, copy.most, copy.scale, copy.first, buckets, exemplars);
    Py_XDECREF(buckets);
    Py_XDECREF(exemplars);
    while (copy.kept) Py_DECREF(copy.exemplars[--copy.kept].trace);
    return made;
}

static PyMethodDef histogram_methods[] = {
    {"add", (PyCFunction)(void (*)(void))histogram_add, METH_FASTCALL, "add(took_ns, trace, is_preferred)"},
    {"collect", collect, METH_NOARGS, "Return what was added, and exemplars."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot histogram_slots[] = {
    {Py_tp_doc, "An exponential histogram of times."}, {Py_tp_new, make_histogram}, {Py_tp_dealloc, dealloc_histogram},
    {Py_tp_methods, histogram_methods}, {0, NULL},
};

/* --- Series */

static PyObject *make_series(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(named)) {
    PyObject *whole, *by_stage;
    int is_preferred;
    if (!PyArg_ParseTuple(args, "OOp", &whole, &by_stage, &is_preferred)) return NULL;
    bool is_empty = whole == Py_None && by_stage == Py_None;
    if (!is_empty && (Py_TYPE(whole) != histogram_type || !PyDict_CheckExact(by_stage)))
        return PyErr_Format(PyExc_TypeError, "Series takes a Histogram, a dict and a bool");
    Series *self = (Series *)allocate(type);
    if (self == NULL) return NULL;
    self->whole = is_empty ? NULL : Py_NewRef(whole);
    self->by_stage = is_empty ? NULL : Py_NewRef(by_stage);
    self->is_preferred = is_preferred;
    return (PyObject *)self;
}

static void dealloc_series(PyObject *self) {
    Py_XDECREF(((Series *)self)->whole);
    Py_XDECREF(((Series *)self)->by_stage);
    release(self);
}

/* Note in a dict, which is made for the first one, a stage that has no histogram. */
static int note_missing(PyObject **missing, PyObject *name, int64_t took) {
    if (*missing == NULL && (*missing = PyDict_New()) == NULL) return -1;
    PyObject *number = PyLong_FromLongLong(took);
    int result = number ? PyDict_SetItem(*missing, name, number) : -1;
    Py_XDECREF(number);
    return result;
}

/* Add the totals of stages to their histograms. Return those without one as a dict, or None. */
static PyObject *add_stages(const Series *self, const Tiling *tiling, PyObject *trace) {
    Totals totals;
    PyObject *missing = NULL;
    int result = 0;
    if (!add_up(&totals, tiling->segments, tiling->count)) return NULL;
    for (int i = 0; result == 0 && i < totals.count; i++) {
        PyObject *name = stage_name(tiling, totals.of[i].stage);
        PyObject *found = PyDict_GetItemWithError(self->by_stage, name); /* none is ever removed */
        if (found != NULL && Py_TYPE(found) == histogram_type)
            add_to(found, totals.of[i].sum, trace, self->is_preferred);
        else result = PyErr_Occurred() ? -1 : note_missing(&missing, name, totals.of[i].sum);
    }
    PyMem_Free(totals.of);
    if (result < 0) Py_CLEAR(missing);
    else if (missing == NULL) missing = Py_NewRef(Py_None);
    return missing;
}

static PyObject *series_add(PyObject *object, PyObject *const *args, Py_ssize_t given) {
    Series *self = (Series *)object;
    int64_t took;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "add takes a time, stages and a trace");
    LOCK(object);
    self->count++;
    UNLOCK();
    if (self->whole == NULL || args[0] == Py_None) Py_RETURN_NONE;
    if (Py_TYPE(args[1]) != stages_type) return PyErr_Format(PyExc_TypeError, "add takes Stages");
    if (read_time(args[0], &took) < 0) return NULL;
    add_to(self->whole, took, args[2], self->is_preferred);
    return add_stages(self, ((Stages *)args[1])->tiling, args[2]);
}

static PyMethodDef series_methods[] = {
    {"add", (PyCFunction)(void (*)(void))series_add, METH_FASTCALL, "add(took_ns, stages, trace)"},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef series_members[] = {
    {"count", T_ULONGLONG, offsetof(Series, count), READONLY, "How many requests were added."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot series_slots[] = {
    {Py_tp_doc, "Requests that are counted alike."}, {Py_tp_new, make_series}, {Py_tp_dealloc, dealloc_series},
    {Py_tp_methods, series_methods}, {Py_tp_members, series_members}, {0, NULL},
};

static PyType_Spec histogram_spec = {
    "stagetrace._native.Histogram", sizeof(Histogram), 0, Py_TPFLAGS_DEFAULT, histogram_slots,
};
static PyType_Spec series_spec = {"stagetrace._native.Series", sizeof(Series), 0, Py_TPFLAGS_DEFAULT, series_slots};

static int fill(PyObject *module) {
    histogram_type = (PyTypeObject *)PyType_FromSpec(&histogram_spec);
    series_type = (PyTypeObject *)PyType_FromSpec(&series_spec);
    if (histogram_type == NULL || series_type == NULL) return -1;
    if (PyModule_AddObjectRef(module, "Histogram", (PyObject *)histogram_type) < 0) return -1;
    return PyModule_AddObjectRef(module, "Series", (PyObject *)series_type);
}

const Group histograms_group = {"histograms", NULL, fill};
