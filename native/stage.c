/* Mark of request/marks.py and stage of request/stage.py in C: the marking of a stage by hand (docs/decisions/011). */
#include "record.h"
#include <structmember.h>

enum { MAX_NAME = 64, LONG_NS = 1000000 }; /* as in stage.py */

PyTypeObject *mark_type;

/* Of the one interpreter that has imported this; another one, within the same process, takes the Python implementation. */
enum { CURRENT_GET, ENTRIES, RECORDING, REPORT, PREPARED, DECORATED, NO_NAME, COMPUTED, HELD };
static PyObject *held[HELD];
static const char *const WHERE[HELD][2] = {
    {"stagetrace.request.current", "current"}, {"stagetrace.request.current", "entries"},
    {"stagetrace.request.current", "recording"}, {"stagetrace.guard", "report"},
    {"stagetrace.request.stage", "prepared"}, {"stagetrace.request.stage", "decorated"},
    {"stagetrace.request.stage", "NO_NAME"}, {"stagetrace.request.stage", "note_computed"},
};

typedef struct {
    PyObject_HEAD
    PyObject *name, *attributes; /* attributes: NULL if there are none */
    PyObject *record, *mark;   /* while its block is open */
    int64_t began, computed;   /* then, by the wall clock and by that of the CPU time of its thread */
    unsigned long thread;
} Stage;

/* The CPU time of this thread when it was read last, and when that was: a reading is a system call, of 0.2 to 0.8 us. */
static _Thread_local int64_t read_at, read_cpu;

static int64_t read_computed(int64_t now) {
    read_at = now;
    return read_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* --- Mark */

static PyObject *new_mark(PyObject *const *parts) {
    Mark *self = (Mark *)((allocfunc)PyType_GetSlot(mark_type, Py_tp_alloc))(mark_type, 0);
    if (self == NULL) return NULL;
    self->stage = Py_XNewRef(parts[0]);
    self->attributes = Py_NewRef(parts[1] ? parts[1] : Py_None);
    self->context = parts[2] == Py_None ? NULL : Py_XNewRef(parts[2]);
    self->link = parts[3] == Py_None ? NULL : Py_XNewRef(parts[3]);
    return (PyObject *)self;
}

static PyObject *make_mark(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *named) {
    static char *names[] = {"stage", "attributes", "context", "link", NULL};
    PyObject *parts[4] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, named, "|OOOO", names, &parts[0], &parts[1], &parts[2], &parts[3])) return NULL;
    return new_mark(parts);
}

static int traverse_mark(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Mark *)self)->stage);
    Py_VISIT(((Mark *)self)->attributes);
    Py_VISIT(((Mark *)self)->context);
    Py_VISIT(((Mark *)self)->link);
    return 0;
}

static int clear_mark(PyObject *self) {
    Py_CLEAR(((Mark *)self)->stage);
    Py_CLEAR(((Mark *)self)->attributes);
    Py_CLEAR(((Mark *)self)->context);
    Py_CLEAR(((Mark *)self)->link);
    return 0;
}

static void dealloc_mark(PyObject *self) { free_object(self, clear_mark); }

static PyMemberDef mark_members[] = {
    {"stage", T_OBJECT_EX, offsetof(Mark, stage), 0, NULL},
    {"attributes", T_OBJECT, offsetof(Mark, attributes), 0, NULL},
    {"context", T_OBJECT, offsetof(Mark, context), READONLY, NULL},
    {"link", T_OBJECT, offsetof(Mark, link), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mark_slots[] = {
    {Py_tp_doc, "One explicit `with stage(name)` block."}, {Py_tp_new, make_mark}, {Py_tp_dealloc, dealloc_mark},
    {Py_tp_traverse, traverse_mark}, {Py_tp_clear, clear_mark}, {Py_tp_members, mark_members}, {0, NULL},
};

/* --- stage */

/* Say what has failed here and go on; return -1 where that is none of our errors. */
static int said(void) {
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *done = PyObject_CallFunction(held[REPORT], "sO", "stagetrace.request.stage", error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

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

/* Return the record of the request that this code serves, or NULL, perhaps with an exception. */
static PyObject *recording(void) {
    PyObject *record = PyObject_CallObject(held[CURRENT_GET], NULL);
    if (record == NULL) return NULL;
    bool is_bound;
    if (PyObject_TypeCheck(record, marks_type) && takes_marks(record, &is_bound)) {
        if (is_bound) return record;
        Py_DECREF(record);
        return NULL;
    }
    Py_DECREF(record);
    if (PyDict_Size(held[ENTRIES]) <= 0) return NULL;
    record = PyObject_CallObject(held[RECORDING], NULL);
    if (record == Py_None) Py_CLEAR(record);
    return record;
}

/* Return the mark that a block makes: its name cut to what a name may be, its attributes to what can be sent. */
static PyObject *mark_of(Stage *stage) {
    PyObject *name = stage->name, *attributes = stage->attributes ? stage->attributes : Py_None, *mark = NULL;
    Py_INCREF(name); /* __init__ may replace them meanwhile */
    Py_INCREF(attributes);
    Py_ssize_t length = attributes == Py_None && PyUnicode_CheckExact(name) ? PyUnicode_GetLength(name) : 0;
    if (length > 0 && length <= MAX_NAME) mark = new_mark((PyObject *[4]){name});
    else mark = PyObject_CallFunctionObjArgs(held[PREPARED], name, attributes, NULL);
    Py_DECREF(attributes);
    Py_DECREF(name);
    return mark;
}

/* Note the begin or end of a mark. */
static int note_mark(PyObject *record, int kind, PyObject *mark) {
    if (!PyObject_TypeCheck(record, marks_type)) return fail(PyExc_TypeError, "no record of ours");
    PyObject *attributes = kind == BEGIN_MARK && Py_TYPE(mark) == mark_type ? ((Mark *)mark)->attributes : NULL;
    return note(record, NULL, kind, mark, attributes);
}

static int open_stage(Stage *stage) {
    PyObject *record = stage->name ? recording() : NULL;
    if (record == NULL) return PyErr_Occurred() ? -1 : 0;
    PyObject *mark = mark_of(stage);
    int result = mark ? note_mark(record, BEGIN_MARK, mark) : -1;
    if (result < 0) {
        Py_XDECREF(mark);
        Py_DECREF(record);
        return -1;
    }
    PyObject *before[] = {stage->record, stage->mark};
    stage->record = record;
    stage->mark = mark;
    int64_t now = stage->began = clock_ns(CLOCK_REALTIME);
    /* Just after a reading it has computed all the time, to within that. */
    bool is_near = now >= read_at && now - read_at < LONG_NS;
    stage->computed = is_near ? read_cpu + now - read_at : read_computed(now);
    stage->thread = PyThread_get_thread_ident();
    Py_XDECREF(before[0]);
    Py_XDECREF(before[1]);
    return 0;
}

static PyObject *enter_stage(PyObject *self, PyObject *Py_UNUSED(none)) {
    if (open_stage((Stage *)self) < 0 && said() < 0) return NULL;
    Py_RETURN_NONE;
}

/* Note what the thread has computed in a block, unless that was short or ends in another thread. */
static int note_computed(PyObject *record, int64_t began, int64_t computed, unsigned long thread) {
    int64_t now = clock_ns(CLOCK_REALTIME);
    if (now - began < LONG_NS || thread != PyThread_get_thread_ident()) return 0;
    computed = read_computed(now) - computed;
    PyObject *done = PyObject_CallFunction(
        held[COMPUTED], "OLLL", record, (long long)began, (long long)now, (long long)(computed > 0 ? computed : 0));
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static PyObject *exit_stage(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(given)) {
    Stage *stage = (Stage *)self;
    PyObject *record = stage->record, *mark = stage->mark;
    int64_t began = stage->began, computed = stage->computed;
    unsigned long thread = stage->thread;
    stage->record = stage->mark = NULL;
    int result = record ? note_mark(record, END_MARK, mark) : 0;
    if (record && result == 0) result = note_computed(record, began, computed, thread);
    if (result < 0) result = said();
    Py_XDECREF(record);
    Py_XDECREF(mark);
    return result < 0 ? NULL : Py_NewRef(Py_None);
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
    Py_VISIT(((Stage *)self)->record);
    Py_VISIT(((Stage *)self)->mark);
    return 0;
}

static int clear_stage(PyObject *self) {
    Py_CLEAR(((Stage *)self)->name);
    Py_CLEAR(((Stage *)self)->attributes);
    Py_CLEAR(((Stage *)self)->record);
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

/* --- the groups */

#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
static PyType_Spec mark_spec = {"stagetrace._native.Mark", sizeof(Mark), 0, FLAGS, mark_slots};
static PyType_Spec stage_spec = {"stagetrace._native.stage", sizeof(Stage), 0, FLAGS, stage_slots};

static int fill(PyObject *module) {
    if (fill_tiling() < 0) return -1;
    if (mark_type != NULL) return 0; /* a module that was imported just now has asked for this group, too */
    if (add_record_types(module) < 0) return -1;
    mark_type = (PyTypeObject *)PyType_FromSpec(&mark_spec);
    return mark_type ? PyModule_AddObjectRef(module, "Mark", (PyObject *)mark_type) : -1;
}

static int fill_stage(PyObject *module) {
    static bool is_there;
    if (import_all(held, WHERE, HELD) < 0) return -1;
    if (is_there) return 0; /* stage.py, imported just now, has asked for this group, too */
    PyObject *get = PyObject_GetAttrString(held[CURRENT_GET], "get");
    if (get == NULL) return -1;
    Py_DECREF(held[CURRENT_GET]);
    held[CURRENT_GET] = get;
    PyObject *stage = PyType_FromSpec(&stage_spec);
    if (stage == NULL || PyModule_AddObject(module, "stage", stage) < 0) return -1;
    is_there = true;
    return 0;
}

const Group marks_group = {"marks", NULL, fill};
const Group stage_group = {"stage", NULL, fill_stage};
