/* Marks, Mark and stage of marks.py in C: what the code of a request calls many times (docs/decisions/011).
 *
 * What they do and why is said where the reference is.
 */
#include "native.h"
#include <structmember.h>

enum { BEGIN, END, BEGIN_MARK, END_MARK, KINDS }; /* as in tiler.py */
enum { MAX_LOG = 1000, MAX_NAME = 64 };           /* as in marks.py */

/* Of the one interpreter that has imported this; another one, within the same process, takes the reference. */
enum { CURRENT_GET, ENTRIES, RECORDING, REPORT, PREPARED, DECORATED, NO_NAME, MARKS, MARK, NO_ARGUMENTS, HELD };
static PyObject *held[HELD];
static PyObject *kinds[KINDS];

static const char *const WHERE[MARKS][2] = {
    {"stagetrace.recording.current_record", "current"}, {"stagetrace.recording.current_record", "entries"},
    {"stagetrace.recording.current_record", "recording"}, {"stagetrace.guard", "report"},
    {"stagetrace.recording.marks", "prepared"}, {"stagetrace.recording.marks", "decorated"},
    {"stagetrace.recording.marks", "NO_NAME"},
};

typedef struct {
    PyObject_HEAD
    PyObject *stage, *attributes;
} Mark;

typedef struct {
    PyObject_HEAD
    PyObject *name, *attributes; /* attributes: NULL if there are none */
    PyObject *timeline, *mark;   /* while its block is open */
} Stage;

/* The marks of a request. */
typedef struct {
    PyObject_HEAD
    PyObject *log;   /* a list of events */
    PyObject *clock; /* NULL: the wall clock */
    char closed, bound;
} Marks;

/* Give the error that is set to guard.report, which is `report`, and go on; return -1 where it is none of our errors. */
static int report_error(PyObject *report, const char *where) {
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *done = PyObject_CallFunction(report, "sO", where, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Free an object of a type that is made at the import, or the part of a subclass's that is ours. */
static void free_object(PyObject *self, inquiry clear) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* --- Marks */

static PyObject *now(Marks *self) {
    PyObject *clock = self->clock;
    if (clock == NULL || clock == Py_None) return PyLong_FromLongLong(clock_ns(CLOCK_REALTIME));
    Py_INCREF(clock); /* which may set another one */
    PyObject *time = PyObject_CallObject(clock, NULL);
    Py_DECREF(clock);
    return time;
}

/* Note an event at a time given, or now if that is NULL, None or 0. */
static int note(Marks *self, PyObject *at, int kind, PyObject *what, PyObject *attributes) {
    if (self->closed) return 0;
    int given = at == NULL || at == Py_None ? 0 : PyObject_IsTrue(at);
    if (given < 0) return -1;
    if (attributes == NULL) attributes = Py_None;
    Py_INCREF(attributes); /* a mark's: the clock may give it others */
    PyObject *time = given ? (Py_INCREF(at), at) : now(self);
    PyObject *event = time ? PyTuple_Pack(4, time, kinds[kind], what, attributes) : NULL;
    Py_DECREF(attributes);
    Py_XDECREF(time);
    if (event == NULL) return -1;
    PyObject *log = self->log; /* NULL once it has been collected as garbage, which the lines above may do */
    int result = log ? PyList_Append(log, event) : 0;
    Py_DECREF(event);
    if (result == 0 && log && (kind == BEGIN || kind == BEGIN_MARK) && PyList_Size(log) > MAX_LOG) {
        PyObject *done = PyObject_CallMethod((PyObject *)self, "_shorten", NULL);
        result = done ? 0 : -1;
        Py_XDECREF(done);
    }
    return result;
}

static PyObject *noted(int result) {
    if (result < 0) return NULL;
    Py_RETURN_NONE;
}

/* Read what may follow an activity: by place, or as `attributes` and `at`, of which `first` is the first that may. */
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
    PyErr_SetString(PyExc_TypeError, "enter takes an activity, attributes and a time; leave an activity and a time");
    return -1;
}

static PyObject *enter(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *named) {
    PyObject *rest[] = {NULL, NULL};
    if (read_rest(rest, 0, args, given, named) < 0) return NULL;
    return noted(note((Marks *)self, rest[1], BEGIN, args[0], rest[0]));
}

static PyObject *leave(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *named) {
    PyObject *rest[] = {NULL, NULL};
    if (read_rest(rest, 1, args, given, named) < 0) return NULL;
    return noted(note((Marks *)self, rest[1], END, args[0], NULL));
}

static PyObject *begin_mark(PyObject *self, PyObject *mark) {
    if (Py_TYPE(mark) != (PyTypeObject *)held[MARK]) return PyErr_Format(PyExc_TypeError, "begin_mark takes a Mark");
    return noted(note((Marks *)self, NULL, BEGIN_MARK, mark, ((Mark *)mark)->attributes));
}

static PyObject *end_mark(PyObject *self, PyObject *mark) {
    return noted(note((Marks *)self, NULL, END_MARK, mark, NULL));
}

static PyObject *make_marks(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(named)) {
    /* By object's own: what merely allocates leaves a subclass's attributes to a dict, which takes longer to fill. */
    Marks *self = (Marks *)((newfunc)PyType_GetSlot(&PyBaseObject_Type, Py_tp_new))(type, held[NO_ARGUMENTS], NULL);
    if (self == NULL) return NULL;
    if ((self->log = PyList_New(0)) == NULL) Py_CLEAR(self);
    return (PyObject *)self;
}

static int traverse_marks(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Marks *)self)->log);
    Py_VISIT(((Marks *)self)->clock);
    return 0;
}

static int clear_marks(PyObject *self) {
    ((Marks *)self)->closed = 1; /* the list is gone */
    Py_CLEAR(((Marks *)self)->log);
    Py_CLEAR(((Marks *)self)->clock);
    return 0;
}

static void dealloc_marks(PyObject *self) { free_object(self, clear_marks); }

static PyMethodDef marks_methods[] = {
    {"enter", (PyCFunction)(void (*)(void))enter, METH_FASTCALL | METH_KEYWORDS, "Note that an activity of PRIORITY begins."},
    {"leave", (PyCFunction)(void (*)(void))leave, METH_FASTCALL | METH_KEYWORDS, "Note that an activity ends."},
    {"begin_mark", begin_mark, METH_O, "Note that an explicit stage begins; the latest one still open wins."},
    {"end_mark", end_mark, METH_O, "Note that an explicit stage ends."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef marks_members[] = {
    {"_log", T_OBJECT, offsetof(Marks, log), READONLY, NULL},
    {"clock", T_OBJECT, offsetof(Marks, clock), 0, NULL},
    {"closed", T_BOOL, offsetof(Marks, closed), 0, NULL},
    {"bound", T_BOOL, offsetof(Marks, bound), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot marks_slots[] = {
    {Py_tp_doc, "The marks of one request."}, {Py_tp_new, make_marks}, {Py_tp_dealloc, dealloc_marks},
    {Py_tp_traverse, traverse_marks}, {Py_tp_clear, clear_marks}, {Py_tp_methods, marks_methods},
    {Py_tp_members, marks_members}, {0, NULL},
};

/* --- Mark */

static PyObject *new_mark(PyObject *stage, PyObject *attributes) {
    PyTypeObject *type = (PyTypeObject *)held[MARK];
    Mark *self = (Mark *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) return NULL;
    Py_XINCREF(self->stage = stage);
    Py_INCREF(self->attributes = attributes ? attributes : Py_None);
    return (PyObject *)self;
}

static PyObject *make_mark(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *named) {
    static char *names[] = {"stage", "attributes", NULL};
    PyObject *stage = NULL, *attributes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, named, "|OO", names, &stage, &attributes)) return NULL;
    return new_mark(stage, attributes);
}

static int traverse_mark(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Mark *)self)->stage);
    Py_VISIT(((Mark *)self)->attributes);
    return 0;
}

static int clear_mark(PyObject *self) {
    Py_CLEAR(((Mark *)self)->stage);
    Py_CLEAR(((Mark *)self)->attributes);
    return 0;
}

static void dealloc_mark(PyObject *self) { free_object(self, clear_mark); }

static PyMemberDef mark_members[] = {
    {"stage", T_OBJECT_EX, offsetof(Mark, stage), 0, NULL},
    {"attributes", T_OBJECT, offsetof(Mark, attributes), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mark_slots[] = {
    {Py_tp_doc, "One explicit `with stage(name)` block."}, {Py_tp_new, make_mark}, {Py_tp_dealloc, dealloc_mark},
    {Py_tp_traverse, traverse_mark}, {Py_tp_clear, clear_mark}, {Py_tp_members, mark_members}, {0, NULL},
};

/* --- stage */

/* Say what has failed here and go on; return -1 where that is none of our errors. */
static int said(void) { return report_error(held[REPORT], "stagetrace.recording.stage"); }

static int init_stage(PyObject *self, PyObject *args, PyObject *named) {
    Stage *stage = (Stage *)self;
    Py_ssize_t given = PyTuple_Size(args);
    PyObject *name = given == 1 ? PyTuple_GetItem(args, 0) : NULL;
    PyObject *attributes = named && PyDict_Size(named) ? PyDict_Copy(named) : NULL;
    if (given == 0 && attributes != NULL && (name = PyDict_GetItemString(attributes, "name")) != NULL) {
        Py_INCREF(name);
        if (PyDict_DelItemString(attributes, "name") < 0) Py_CLEAR(name);
    } else {
        Py_XINCREF(name);
    }
    if (name == NULL) {
        Py_XDECREF(attributes);
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "stage takes one name, and attributes by keyword");
        return -1;
    }
    if (PyCallable_Check(name)) {
        PyErr_SetObject(PyExc_TypeError, held[NO_NAME]);
        Py_DECREF(name);
        Py_XDECREF(attributes);
        return -1;
    }
    PyObject *before[] = {stage->name, stage->attributes};
    stage->name = name;
    stage->attributes = attributes;
    Py_XDECREF(before[0]);
    Py_XDECREF(before[1]);
    return PyErr_Occurred() ? -1 : 0;
}

/* Return the timeline of the request that this code serves, or NULL, perhaps with an exception. */
static PyObject *recording(void) {
    PyObject *timeline = PyObject_CallObject(held[CURRENT_GET], NULL);
    if (timeline == NULL) return NULL;
    if (PyObject_TypeCheck(timeline, (PyTypeObject *)held[MARKS]) && !((Marks *)timeline)->closed) {
        if (((Marks *)timeline)->bound) return timeline;
        Py_DECREF(timeline);
        return NULL;
    }
    Py_DECREF(timeline);
    if (PyDict_Size(held[ENTRIES]) <= 0) return NULL;
    timeline = PyObject_CallObject(held[RECORDING], NULL);
    if (timeline == Py_None) Py_CLEAR(timeline);
    return timeline;
}

/* Return the mark that a block makes: its name cut to what a name may be, its attributes to what can be sent. */
static PyObject *mark_of(Stage *stage) {
    PyObject *name = stage->name, *attributes = stage->attributes ? stage->attributes : Py_None, *mark = NULL;
    Py_INCREF(name); /* __init__ may replace them meanwhile */
    Py_INCREF(attributes);
    Py_ssize_t length = attributes == Py_None && PyUnicode_CheckExact(name) ? PyUnicode_GetLength(name) : 0;
    if (length > 0 && length <= MAX_NAME) mark = new_mark(name, NULL);
    else mark = PyObject_CallFunctionObjArgs(held[PREPARED], name, attributes, NULL);
    Py_DECREF(attributes);
    Py_DECREF(name);
    return mark;
}

/* Note the begin or end of a mark. */
static int note_mark(PyObject *timeline, int kind, PyObject *mark) {
    if (PyObject_TypeCheck(timeline, (PyTypeObject *)held[MARKS]) && Py_TYPE(mark) == (PyTypeObject *)held[MARK])
        return note((Marks *)timeline, NULL, kind, mark, kind == BEGIN_MARK ? ((Mark *)mark)->attributes : NULL);
    PyErr_SetString(PyExc_TypeError, "no timeline of ours, or no mark");
    return -1;
}

static int open_stage(Stage *stage) {
    PyObject *timeline = stage->name ? recording() : NULL;
    if (timeline == NULL) return PyErr_Occurred() ? -1 : 0;
    PyObject *mark = mark_of(stage);
    int result = mark ? note_mark(timeline, BEGIN_MARK, mark) : -1;
    if (result < 0) {
        Py_XDECREF(mark);
        Py_DECREF(timeline);
        return -1;
    }
    PyObject *before[] = {stage->timeline, stage->mark};
    stage->timeline = timeline;
    stage->mark = mark;
    Py_XDECREF(before[0]);
    Py_XDECREF(before[1]);
    return 0;
}

static PyObject *enter_stage(PyObject *self, PyObject *Py_UNUSED(none)) {
    if (open_stage((Stage *)self) < 0 && said() < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *exit_stage(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(given)) {
    Stage *stage = (Stage *)self;
    PyObject *timeline = stage->timeline, *mark = stage->mark;
    stage->timeline = stage->mark = NULL;
    int result = timeline ? note_mark(timeline, END_MARK, mark) : 0;
    if (result < 0) result = said();
    Py_XDECREF(timeline);
    Py_XDECREF(mark);
    return noted(result);
}

static PyObject *decorate(PyObject *self, PyObject *args, PyObject *named) {
    Stage *stage = (Stage *)self;
    PyObject *function = NULL;
    if (named != NULL && PyDict_Size(named) > 0) {
        PyErr_SetString(PyExc_TypeError, "a stage decorates one function");
        return NULL;
    }
    if (!PyArg_UnpackTuple(args, "stage", 1, 1, &function)) return NULL;
    PyObject *name = stage->name ? stage->name : Py_None, *attributes = stage->attributes ? stage->attributes : Py_None;
    Py_INCREF(name); /* __init__ may replace them meanwhile */
    Py_INCREF(attributes);
    PyObject *type = (PyObject *)Py_TYPE(self);
    PyObject *made = PyObject_CallFunctionObjArgs(held[DECORATED], type, name, attributes, function, NULL);
    Py_DECREF(attributes);
    Py_DECREF(name);
    return made;
}

static int traverse_stage(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Stage *)self)->name);
    Py_VISIT(((Stage *)self)->attributes);
    Py_VISIT(((Stage *)self)->timeline);
    Py_VISIT(((Stage *)self)->mark);
    return 0;
}

static int clear_stage(PyObject *self) {
    Py_CLEAR(((Stage *)self)->name);
    Py_CLEAR(((Stage *)self)->attributes);
    Py_CLEAR(((Stage *)self)->timeline);
    Py_CLEAR(((Stage *)self)->mark);
    return 0;
}

static void dealloc_stage(PyObject *self) { free_object(self, clear_stage); }

static PyMethodDef stage_methods[] = {
    {"__enter__", enter_stage, METH_NOARGS, "Begin the stage."},
    {"__exit__", (PyCFunction)(void (*)(void))exit_stage, METH_FASTCALL, "End the stage."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stage_slots[] = {
    {Py_tp_doc, "Make the block, or each call of a function, a stage of the current request; outside of one it does nothing."},
    {Py_tp_new, PyType_GenericNew}, {Py_tp_init, init_stage}, {Py_tp_dealloc, dealloc_stage}, {Py_tp_call, decorate},
    {Py_tp_traverse, traverse_stage}, {Py_tp_clear, clear_stage}, {Py_tp_methods, stage_methods}, {0, NULL},
};

/* --- the module */

#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
static PyType_Spec marks_spec = {"stagetrace._native.Marks", sizeof(Marks), 0, FLAGS | Py_TPFLAGS_BASETYPE, marks_slots};
static PyType_Spec mark_spec = {"stagetrace._native.Mark", sizeof(Mark), 0, FLAGS, mark_slots};
static PyType_Spec stage_spec = {"stagetrace._native.stage", sizeof(Stage), 0, FLAGS, stage_slots};

static int fill(PyObject *module) {
    if (import_all(held, WHERE, MARKS) < 0) return -1;
    PyObject *get = PyObject_GetAttrString(held[CURRENT_GET], "get");
    if (get == NULL) return -1;
    Py_DECREF(held[CURRENT_GET]);
    held[CURRENT_GET] = get;
    for (int i = 0; i < KINDS; i++)
        if ((kinds[i] = PyLong_FromLong(i)) == NULL) return -1;
    if ((held[NO_ARGUMENTS] = PyTuple_New(0)) == NULL) return -1;
    PyObject *stage = PyType_FromSpec(&stage_spec);
    if (stage == NULL || PyModule_AddObject(module, "stage", stage) < 0) return -1;
    if ((held[MARK] = PyType_FromSpec(&mark_spec)) == NULL || (held[MARKS] = PyType_FromSpec(&marks_spec)) == NULL)
        return -1;
    Py_INCREF(held[MARK]);
    Py_INCREF(held[MARKS]);
    return PyModule_AddObject(module, "Mark", held[MARK]) < 0 || PyModule_AddObject(module, "Marks", held[MARKS]) < 0 ? -1
                                                                                                                  : 0;
}

const Group marks_group = {"marks", NULL, fill};
