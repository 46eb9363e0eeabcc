/* Marks of request/marks.py, and Stages of request/tiler.py, in C: where a request's marks are noted, which its code
 * does many times (docs/decisions/011). */
#include "record.h"
#include <structmember.h>

enum { MAX_LOG = 1000, MAX_GIVEN = 64, MAX_VISITS = 1000 }; /* as in marks.py and tiler.py */
enum { FIRST = 12, PATIENCE = 20000 };                      /* most requests have no more marks; a second */

PyTypeObject *marks_type, *stages_type;
static PyObject *no_arguments, *no_attributes;

typedef struct {
    PyObject_HEAD
    int64_t started;
    Tiling *tiling; /* NULL: nobody has asked for a stage. Whoever is the owner works on it */
    Event *events, first[FIRST];
    int noted, room, limit;
    char closed, bound, is_unsorted;
    unsigned long owner; /* the thread that works out stages, 0 if none does */
    PyObject *clock;     /* NULL: the wall clock */
} Marks;

/* Free an object of a type that is made at the import, or the part of a subclass's that is ours. */
void free_object(PyObject *self, inquiry clear) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *new_object(PyTypeObject *type) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static void let_go(Event *events, int count) {
    for (int i = 0; i < count; i++) {
        Py_XDECREF(events[i].mark);
        Py_XDECREF(events[i].attributes);
    }
}

/* --- noting */

static int read_clock(Marks *self, int64_t *time) {
    PyObject *clock = self->clock;
    if (clock == NULL || clock == Py_None) {
        *time = clock_ns(CLOCK_REALTIME);
        return 0;
    }
    Py_INCREF(clock); /* which may set another one */
    PyObject *now = PyObject_CallObject(clock, NULL);
    Py_DECREF(clock);
    int result = now ? read_time(now, time) : -1;
    Py_XDECREF(now);
    return result;
}

/* Make room for one more event; whoever calls this holds the lock. */
static bool make_room(Marks *self) {
    if (self->noted < self->room) return true;
    bool is_first = self->events == self->first;
    Event *more = PyMem_Realloc(is_first ? NULL : self->events, 4 * (size_t)self->room * sizeof *more);
    if (more == NULL) return false;
    if (is_first) memcpy(more, self->first, sizeof self->first);
    self->events = more;
    self->room *= 4;
    return true;
}

static int work_out(Marks *self);
static bool claim(Marks *self, int patience);

static int note_event(Marks *self, PyObject *at, Event event) {
    Py_XINCREF(event.mark); /* whatever the clock does */
    Py_XINCREF(event.attributes);
    int given = at == NULL || at == Py_None ? 0 : PyObject_IsTrue(at);
    bool has_time = given > 0 ? read_time(at, &event.at) == 0 : given == 0 && read_clock(self, &event.at) == 0;
    bool is_noted = false, has_room = true;
    LOCK(self);
    if (has_time && !self->closed && (has_room = make_room(self))) {
        self->events[self->noted++] = event;
        is_noted = true;
    }
    UNLOCK();
    if (!is_noted) let_go(&event, 1);
    if (!has_room) PyErr_NoMemory();
    if (!has_time || !has_room) return -1;
    if (self->noted <= MAX_LOG || !claim(self, 0)) return 0;
    int result = work_out(self);
    self->owner = 0;
    return result;
}

/* Note that an activity or a mark begins or ends, at a time given, or now if that is NULL, None or 0. */
int note(PyObject *record, PyObject *at, int kind, PyObject *what, PyObject *attributes) {
    Event event = {.kind = (int8_t)kind, .attributes = attributes == Py_None ? NULL : attributes};
    if (((Marks *)record)->closed) return 0;
    if (kind == BEGIN_MARK || kind == END_MARK) {
        if (Py_TYPE(what) != mark_type) return fail(PyExc_TypeError, "no Mark of a record");
        event.mark = (Mark *)what;
        return note_event((Marks *)record, at, event);
    }
    while (event.activity < ACTIVITIES && known_stages[event.activity] != what) event.activity++;
    if (event.activity == ACTIVITIES && PyUnicode_Check(what)) {
        event.activity = 0;
        while (event.activity < ACTIVITIES && PyUnicode_Compare(known_stages[event.activity], what) != 0) event.activity++;
    }
    if (event.activity == ACTIVITIES) {
        PyErr_SetObject(PyExc_KeyError, what);
        return -1;
    }
    return note_event((Marks *)record, at, event);
}

/* Read what may follow an activity or a mark: by place, or as `attributes` and `at`, of which `first` is the first. */
static int read_rest(PyObject **rest, int first, PyObject *const *args, Py_ssize_t given, PyObject *named) {
    static const char *const names[] = {"attributes", "at"};
    if (given < 1 || given > 3 - first) goto wrong;
    for (Py_ssize_t i = 1; i < given; i++) rest[first + i - 1] = args[i];
    for (Py_ssize_t i = 0; named != NULL && i < PyTuple_Size(named); i++) {
        int place = first;
        while (place < 2 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(named, i), names[place]) != 0) place++;
        if (place == 2 || rest[place] != NULL) goto wrong;
        rest[place] = args[given + i];
    }
    return 0;
wrong:
    return fail(PyExc_TypeError, "enter takes an activity, attributes and a time; leave and the others one thing and a time");
}

#define NOTER(name, kind, first)                                                                                       \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *named) {                  \
        PyObject *rest[] = {NULL, NULL};                                                                               \
        if (read_rest(rest, first, args, given, named) < 0) return NULL;                                               \
        PyObject *attributes = kind == BEGIN_MARK && Py_TYPE(args[0]) == mark_type ? ((Mark *)args[0])->attributes     \
                                                                                   : rest[0];                          \
        return note(self, rest[1], kind, args[0], attributes) < 0 ? NULL : Py_NewRef(Py_None);                         \
    }
NOTER(enter, BEGIN, 0)
NOTER(leave, END, 1)
NOTER(begin_mark, BEGIN_MARK, 1)
NOTER(end_mark, END_MARK, 1)

bool takes_marks(PyObject *record, bool *is_bound) {
    *is_bound = ((Marks *)record)->bound;
    return !((Marks *)record)->closed;
}

/* --- working out */

/* Let this thread alone work out stages; return whether it may. It may not while it does so already, where a finaliser or
 * an attribute's own code asks, nor where another thread has not come to an end after so many times 50 us. */
static bool claim(Marks *self, int patience) {
    unsigned long me = PyThread_get_thread_ident(), owner;
    for (;; patience--) {
        LOCK(self);
        owner = self->owner;
        if (owner == 0) self->owner = me;
        UNLOCK();
        if (owner == 0 || owner == me || patience <= 0) return owner == 0;
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        Py_END_ALLOW_THREADS
    }
}

static void sort_by_time(Event *events, int count) {
    for (int i = 1; i < count; i++) {
        Event event = events[i];
        int at = i;
        for (; at > 0 && events[at - 1].at > event.at; at--) events[at] = events[at - 1];
        events[at] = event;
    }
}

/* Turn what has been noted into stages, as the owner. An event that cannot be taken leaves an error; the others count. */
static int work_out(Marks *self) {
    if (self->tiling == NULL && (self->tiling = new_tiling(self->started, self->limit)) == NULL) return -1;
    Event copy[FIRST], *events;
    int count;
    LOCK(self); /* others may go on noting meanwhile, elsewhere */
    events = self->events == self->first ? memcpy(copy, self->first, sizeof copy) : self->events;
    count = self->noted;
    self->events = self->first;
    self->noted = 0;
    self->room = FIRST;
    UNLOCK();
    if (self->is_unsorted) sort_by_time(events, count);
    PyObject *type = NULL, *error = NULL, *traceback = NULL;
    for (int i = 0; i < count; i++) {
        if (take(self->tiling, &events[i]) < 0) {
            if (type == NULL) PyErr_Fetch(&type, &error, &traceback);
            else PyErr_Clear();
        }
        let_go(&events[i], 1);
    }
    if (events != copy) PyMem_Free(events);
    if (type != NULL) return PyErr_Restore(type, error, traceback), -1;
    if (self->tiling->count < self->tiling->shorten_at) return 0;
    PyObject *cuts = PyObject_GetAttrString((PyObject *)self, "cuts");
    int result = cuts ? shorten(self->tiling, cuts, self->limit) : -1;
    Py_XDECREF(cuts);
    return result;
}

/* Return the context of the open stage, which `make` makes of the entry span's if it has none; None where it will be no
 * span of its own. */
static PyObject *open_context(PyObject *record, PyObject *const *args, Py_ssize_t given) {
    Marks *self = (Marks *)record;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "open_context takes a context and a function");
    if (self->closed || !claim(self, PATIENCE)) Py_RETURN_NONE;
    PyObject *context = NULL;
    if (work_out(self) == 0) {
        context = Py_XNewRef(self->tiling->open.context);
        if (context == NULL && self->tiling->given >= MAX_GIVEN) context = Py_NewRef(Py_None);
        if (context == NULL && (context = PyObject_CallFunctionObjArgs(args[1], args[0], NULL)) != NULL)
            set_object(&self->tiling->open.context, context);
    }
    self->owner = 0;
    return context;
}

static PyObject *list_segments(const Tiling *tiling, bool with_open) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < tiling->count + with_open; i++) {
        PyObject *one = segment_object(tiling, i < tiling->count ? &tiling->segments[i] : &tiling->open);
        if (one == NULL || PyList_Append(list, one) < 0) Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

static PyObject *so_far(PyObject *record, PyObject *Py_UNUSED(none)) {
    Marks *self = (Marks *)record;
    if (!claim(self, PATIENCE)) return PyList_New(0);
    PyObject *list = work_out(self) < 0 ? NULL : list_segments(self->tiling, true);
    self->owner = 0;
    return list;
}

static PyObject *tile(PyObject *record, PyObject *const *args, Py_ssize_t given) {
    Marks *self = (Marks *)record;
    int64_t start, end, now;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "tile takes two int");
    if (read_time(args[0], &start) < 0 || read_time(args[1], &end) < 0 || read_clock(self, &now) < 0) return NULL;
    if (start < 0) return PyErr_Format(PyExc_OverflowError, "a time before 1970");
    if (!claim(self, PATIENCE)) return PyErr_Format(PyExc_RuntimeError, "the stages of this request are being worked out");
    bool done = work_out(self) == 0;
    Tiling *tiling = self->tiling;
    self->closed = true;
    self->tiling = NULL;
    self->owner = 0;
    done = done && close_tiling(tiling, start, now < end ? now : end, end) == 0;
    if (done && self->is_unsorted) describe_first_inference(tiling);
    Stages *stages = done ? (Stages *)new_object(stages_type) : NULL;
    if (stages == NULL) {
        free_tiling(tiling);
        return NULL;
    }
    stages->tiling = tiling;
    stages->model = Py_NewRef(tiling->model ? tiling->model : no_attributes);
    return (PyObject *)stages;
}

static int clear_marks(PyObject *record) {
    Marks *self = (Marks *)record;
    Event copy[FIRST], *events;
    self->closed = true;
    if (self->owner != 0) return 0; /* then the end of the record does it */
    int count;
    Tiling *tiling;
    LOCK(self);
    events = self->events == self->first ? memcpy(copy, self->first, sizeof copy) : self->events;
    count = self->noted;
    tiling = self->tiling;
    self->events = self->first;
    self->noted = 0;
    self->room = FIRST;
    self->tiling = NULL;
    UNLOCK();
    let_go(events, count);
    if (events != copy) PyMem_Free(events);
    free_tiling(tiling);
    return 0;
}

static PyObject *drop(PyObject *record, PyObject *Py_UNUSED(none)) {
    clear_marks(record);
    Py_RETURN_NONE;
}

/* --- the types */

static PyObject *make_marks(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(named)) {
    /* By object's own: what merely allocates leaves a subclass's attributes to a dict, which takes longer to fill. */
    Marks *self = (Marks *)((newfunc)PyType_GetSlot(&PyBaseObject_Type, Py_tp_new))(type, no_arguments, NULL);
    if (self == NULL) return NULL;
    self->events = self->first;
    self->room = FIRST;
    self->limit = MAX_VISITS;
    return (PyObject *)self;
}

static int traverse_marks(PyObject *record, visitproc visit, void *arg) {
    Marks *self = (Marks *)record;
    Py_VISIT(Py_TYPE(record));
    Py_VISIT(self->clock);
    for (int i = 0; i < self->noted; i++) {
        Py_VISIT(self->events[i].mark);
        Py_VISIT(self->events[i].attributes);
    }
    return traverse_tiling(self->tiling, visit, arg);
}

static int clear_all(PyObject *record) {
    clear_marks(record);
    Py_CLEAR(((Marks *)record)->clock);
    return 0;
}

static void dealloc_marks(PyObject *self) { free_object(self, clear_all); }

static PyObject *cuts_of_none(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure)) { return PyTuple_New(0); }

#define BY_NAME(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL | METH_KEYWORDS
static PyMethodDef marks_methods[] = {
    {"enter", BY_NAME(enter), "enter(activity, attributes=None, at=None): note that an activity of PRIORITY begins."},
    {"leave", BY_NAME(leave), "leave(activity, at=None): note that an activity ends."},
    {"begin_mark", BY_NAME(begin_mark), "begin_mark(mark, at=None): note that an explicit stage begins."},
    {"end_mark", BY_NAME(end_mark), "end_mark(mark, at=None): note that an explicit stage ends."},
    {"open_context", (PyCFunction)(void (*)(void))open_context, METH_FASTCALL,
     "open_context(entry, make): return the open stage's span context."},
    {"so_far", so_far, METH_NOARGS, "Return the segments until now, the last of which is open."},
    {"tile", (PyCFunction)(void (*)(void))tile, METH_FASTCALL,
     "tile(start, end): take no more marks, and return the Stages that tile the interval."},
    {"drop", drop, METH_NOARGS, "Take no more marks, and forget those noted."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef marks_members[] = {
    {"started", T_LONGLONG, offsetof(Marks, started), 0, NULL},
    {"limit", T_INT, offsetof(Marks, limit), 0, NULL},
    {"clock", T_OBJECT, offsetof(Marks, clock), 0, NULL},
    {"closed", T_BOOL, offsetof(Marks, closed), 0, NULL},
    {"bound", T_BOOL, offsetof(Marks, bound), 0, NULL},
    {"is_unsorted", T_BOOL, offsetof(Marks, is_unsorted), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef marks_computed[] = {{"cuts", cuts_of_none, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot marks_slots[] = {
    {Py_tp_doc, "The marks of one request."}, {Py_tp_new, make_marks}, {Py_tp_dealloc, dealloc_marks},
    {Py_tp_traverse, traverse_marks}, {Py_tp_clear, clear_all}, {Py_tp_methods, marks_methods},
    {Py_tp_members, marks_members}, {Py_tp_getset, marks_computed}, {0, NULL},
};

static PyObject *segments(PyObject *self, PyObject *Py_UNUSED(none)) {
    return list_segments(((Stages *)self)->tiling, false);
}

static PyObject *give_context(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    const Tiling *tiling = ((Stages *)self)->tiling;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "give_context takes a number and a context");
    Py_ssize_t number = PyNumber_AsSsize_t(args[0], PyExc_IndexError);
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number < 0 || number >= tiling->count) return PyErr_Format(PyExc_IndexError, "no such segment");
    set_object(&tiling->segments[number].context, args[1] == Py_None ? NULL : args[1]);
    Py_RETURN_NONE;
}

static PyObject *totals(PyObject *self, PyObject *Py_UNUSED(none)) {
    const Tiling *tiling = ((Stages *)self)->tiling;
    Totals totals;
    if (!add_up(&totals, tiling->segments, tiling->count)) return NULL;
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < totals.count; i++) {
        PyObject *sum = PyLong_FromLongLong(totals.of[i].sum);
        if (sum == NULL || PyDict_SetItem(result, stage_name(tiling, totals.of[i].stage), sum) < 0) Py_CLEAR(result);
        Py_XDECREF(sum);
    }
    PyMem_Free(totals.of);
    return result;
}

static int traverse_stages(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Stages *)self)->model);
    return traverse_tiling(((Stages *)self)->tiling, visit, arg);
}

static int clear_stages(PyObject *self) {
    Py_CLEAR(((Stages *)self)->model);
    return 0; /* its segments are not replaced as long as it lives: a cycle through an attribute breaks elsewhere */
}

static int clear_all_stages(PyObject *self) {
    free_tiling(((Stages *)self)->tiling);
    return clear_stages(self);
}

/* The collector, which an attribute's finaliser may run, must not meet a tiling that is half freed. */
static void dealloc_stages(PyObject *self) { free_object(self, clear_all_stages); }

static PyMethodDef stages_methods[] = {
    {"segments", segments, METH_NOARGS, "Return each visit to a stage, as a new list of Segment."},
    {"give_context", (PyCFunction)(void (*)(void))give_context, METH_FASTCALL,
     "give_context(number, context): give a segment the context that its span will have."},
    {"totals", totals, METH_NOARGS, "Return the nanoseconds by stage, in order of first appearance."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stages_members[] = {
    {"model", T_OBJECT_EX, offsetof(Stages, model), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot stages_slots[] = {
    {Py_tp_doc, "The stages of one request."}, {Py_tp_dealloc, dealloc_stages}, {Py_tp_traverse, traverse_stages},
    {Py_tp_clear, clear_stages}, {Py_tp_methods, stages_methods}, {Py_tp_members, stages_members}, {0, NULL},
};

#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
static PyType_Spec marks_spec = {"stagetrace._native.Marks", sizeof(Marks), 0, FLAGS | Py_TPFLAGS_BASETYPE, marks_slots};
static PyType_Spec stages_spec = {
    "stagetrace._native.Stages", sizeof(Stages), 0, FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION, stages_slots,
};

int add_record_types(PyObject *module) {
    static const char *const nothing[1][2] = {{"stagetrace.request.stages", "NOTHING"}};
    if (import_all(&no_attributes, nothing, 1) < 0 || (no_arguments = PyTuple_New(0)) == NULL) return -1;
    marks_type = (PyTypeObject *)PyType_FromSpec(&marks_spec);
    stages_type = (PyTypeObject *)PyType_FromSpec(&stages_spec);
    if (marks_type == NULL || stages_type == NULL) return -1;
    return PyModule_AddObjectRef(module, "Marks", (PyObject *)marks_type);
}
