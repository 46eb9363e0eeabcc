/* The beginning and the description of a request of request.py in C (docs/decisions/011): `OwnRequest._begin_in_python`
 * and `_describe_in_python`, which say what they do and why.
 *
 * Here are only requests that have nothing but what all have: whose scope comes out of no pickle, whose headers name no
 * caller and no load balancer, whose server, client and agent have been seen before, which are answered whole and without
 * an error. All else is left to the reference, before anything is done.
 */
#include "../native.h"
#include "../recording/marks.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Of the one interpreter that has imported this; another one takes the reference. */
enum {
    MARKS, KNOWN, ROUTES, MAX_KEY, LONGEST, ASKED_FOR, GET_TEXTMAP, FIELDS, NO_CONTEXT, CONTEXT, ATTACH, GET_CURRENT,
    CURRENT, LOCK, SPAN_KEY, SCOPE_KEY, REQUEST_SIZE, RESPONSE_SIZE, ADD_ASGI, IMPORTED, TEXTMAP = IMPORTED, NAMED_FIELDS,
    NO_METHOD, URL_PATH, ALL
};
static PyObject *held[ALL];

#define HTTP "stagetrace.instrumentation.http.attributes"
#define OF_CONTEXT "stagetrace.recording.context"
static const char *const WHERE[IMPORTED][2] = {
    {"stagetrace.recording._marks", "Marks"}, {HTTP, "_known"}, {HTTP, "_routes"}, {HTTP, "MAX_CACHED_KEY"},
    {"stagetrace.recording.limits", "longest"}, {HTTP, "asked_for"},
    {"opentelemetry.propagate", "get_global_textmap"}, {HTTP, "_fields"}, {OF_CONTEXT, "NO_CONTEXT"},
    {"opentelemetry.context", "Context"}, {OF_CONTEXT, "attach"}, {OF_CONTEXT, "get_current"},
    {"stagetrace.recording.current_timeline", "current"}, {"threading", "Lock"}, {OF_CONTEXT, "_SPAN_KEY"},
    {"stagetrace.instrumentation.base", "SCOPE_KEY"}, {"stagetrace.semconv", "HTTP_REQUEST_BODY_SIZE"},
    {"stagetrace.semconv", "HTTP_RESPONSE_BODY_SIZE"}, {"stagetrace.instrumentation.connection.tcp_attributes", "add_asgi"},
};

#define NAMES(X) \
    X(_lock) X(_start) X(name) X(_recorder) X(parent_context) X(_scope) X(_connection) X(_method) X(_path) X(_block) \
    X(_client) X(_span_name) X(_before) X(_processor) X(has_others) X(begin) X(set) X(headers) X(method) X(path) X(scheme) \
    X(http_version) X(server) X(client) X(__self__) X(type) X(_is_plain) X(_status) X(_ended_at) X(adopted) X(_size) \
    X(received_bytes) X(_route) X(mount)
enum { NAMES(PLACE) NAMED };
static const char *const WORDS[NAMED] = {NAMES(WORD)};
static PyObject *names[NAMED];
static Py_ssize_t max_key;
static uint64_t field_sizes; /* bit n: there is a name of n bytes among the fields */

/* How far a step got: -1 with an exception. */
enum { FAILED = -1, NOT_HERE, GO_ON };
enum { SERVER_ERROR = 500, KEY = 6, PARTS = 3 }; /* as attributes.py has it: SERVER_ERROR, and `known`'s key and value */

static PyObject *call(PyObject *function, PyObject *argument) {
    return PyObject_CallFunctionObjArgs(function, argument, NULL);
}

static int done(PyObject *result) {
    Py_XDECREF(result);
    return result ? GO_ON : FAILED;
}

/* Let `fields` be what the global propagator and load balancers write into headers. */
static int look_at_fields(void) {
    PyObject *textmap = call(held[GET_TEXTMAP], NULL);
    if (textmap == NULL || textmap == held[TEXTMAP]) return done(textmap);
    PyObject *fields = call(held[FIELDS], textmap), *iterator = fields ? PyObject_GetIter(fields) : NULL, *field;
    uint64_t sizes = 0;
    while (iterator != NULL && (field = PyIter_Next(iterator)) != NULL) {
        Py_ssize_t size = PyBytes_Check(field) ? PyBytes_Size(field) : 0;
        sizes |= (uint64_t)1 << (size < 63 ? size : 63);
        Py_DECREF(field);
    }
    Py_XDECREF(iterator);
    if (PyErr_Occurred()) {
        Py_DECREF(textmap);
        Py_XDECREF(fields);
        return FAILED;
    }
    PyObject *before[] = {held[TEXTMAP], held[NAMED_FIELDS]};
    held[TEXTMAP] = textmap;
    held[NAMED_FIELDS] = fields;
    field_sizes = sizes;
    Py_XDECREF(before[0]);
    Py_XDECREF(before[1]);
    return GO_ON;
}

/* Replace a reference by a new one to another object, or by NULL. */
static void keep(PyObject **kept, PyObject *object) {
    PyObject *before = *kept;
    Py_XINCREF(object);
    *kept = object;
    Py_XDECREF(before);
}

/* Read one header, as `read_headers` does all. */
static int read_header(PyObject *pair, PyObject *fields, PyObject **agent) {
    static const char AGENT[] = "user-agent";
    if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2) return NOT_HERE;
    PyObject *name = PyTuple_GetItem(pair, 0), *value = PyTuple_GetItem(pair, 1);
    char *text;
    Py_ssize_t size;
    if (!PyBytes_CheckExact(name) || !PyBytes_CheckExact(value)) return NOT_HERE;
    if (PyBytes_AsStringAndSize(name, &text, &size) < 0) return FAILED;
    if (size == sizeof AGENT - 1 && memcmp(text, AGENT, sizeof AGENT - 1) == 0) {
        keep(agent, value);
    } else if (field_sizes >> (size < 63 ? size : 63) & 1) {
        int found = PySet_Contains(fields, name);
        if (found) return found < 0 ? FAILED : NOT_HERE;
    }
    return GO_ON;
}

/* `http.read_headers`: set the user agent, a new reference even where it fails; not here if a header says more. */
static int read_headers(PyObject *headers, PyObject **agent) {
    if (!PyList_CheckExact(headers)) return NOT_HERE;
    keep(agent, Py_None);
    /* A field that compares itself with a name may change the headers and the propagator. */
    PyObject *fields = NULL, *pair = NULL;
    keep(&fields, held[NAMED_FIELDS]);
    int result = GO_ON;
    for (Py_ssize_t i = 0; result == GO_ON && i < PyList_Size(headers); i++) {
        keep(&pair, PyList_GetItem(headers, i));
        result = pair ? read_header(pair, fields, agent) : FAILED;
    }
    keep(&pair, NULL);
    keep(&fields, NULL);
    return result;
}

/* Return whether a text is at most as long as a value may be. */
static int is_short(Py_ssize_t size) {
    PyObject *longest = call(held[LONGEST], NULL);
    Py_ssize_t most = longest ? PyLong_AsSsize_t(longest) : -1;
    Py_XDECREF(longest);
    if (most == -1 && PyErr_Occurred()) return FAILED;
    return size <= most ? GO_ON : NOT_HERE;
}

/* Set what `http.known` returns, a new reference. */
static int look_up(PyObject *scope, PyObject *agent, PyObject **known) {
    static const int parts[] = {N_method, N_scheme, N_http_version, N_server, N_client};
    PyObject *key = PyTuple_New(KEY);
    if (key == NULL) return FAILED;
    for (int i = 0; i < KEY; i++) {
        PyObject *part = i == KEY - 1 ? agent : PyDict_GetItemWithError(scope, names[parts[i]]);
        if (part == NULL) part = i == 0 ? held[NO_METHOD] : Py_None;
        Py_INCREF(part);
        PyTuple_SetItem(key, i, part);
    }
    *known = PyErr_Occurred() ? NULL : PyDict_GetItemWithError(held[KNOWN], key);
    Py_XINCREF(*known);
    Py_DECREF(key);
    if (*known != NULL) return PyTuple_CheckExact(*known) && PyTuple_Size(*known) == PARTS ? GO_ON : NOT_HERE;
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_TypeError)) PyErr_Clear(); /* lists, from some servers */
    return PyErr_Occurred() ? FAILED : NOT_HERE;
}

static int set(PyObject *request, int name, PyObject *value) { return PyObject_SetAttr(request, names[name], value); }

/* Let the request be the current one, its span in OpenTelemetry's context. */
static int come_in(PyObject *request) {
    PyObject *before = call(held[GET_CURRENT], NULL), *context = before ? call(held[CONTEXT], NULL) : NULL;
    int result = context && set(request, N__before, before) == 0 ? GO_ON : FAILED;
    if (result == GO_ON) result = done(PyObject_CallMethodObjArgs(held[CURRENT], names[N_set], request, NULL));
    if (result == GO_ON && PyDict_SetItem(context, held[SPAN_KEY], request) < 0) result = FAILED;
    if (result == GO_ON) result = done(call(held[ATTACH], context));
    Py_XDECREF(before);
    Py_XDECREF(context);
    return result;
}

/* Let other processors know that a span begins, if there are any. */
static int tell_others(PyObject *request, PyObject *recorder) {
    PyObject *processor = PyObject_GetAttr(recorder, names[N__processor]);
    PyObject *others = processor ? PyObject_GetAttr(processor, names[N_has_others]) : NULL;
    int any = others ? PyObject_IsTrue(others) : FAILED;
    Py_XDECREF(processor);
    Py_XDECREF(others);
    if (any <= 0) return any < 0 ? FAILED : GO_ON;
    return done(PyObject_CallMethodObjArgs(recorder, names[N_begin], request, held[NO_CONTEXT], NULL));
}

/* What a request begins with. All of it is owned: the code that runs meanwhile may change the scope and clear the cache. */
typedef struct {
    PyObject *agent, *connection, *known, *lock, *method, *path; /* method, path: NULL if the scope has none */
} Found;

static int find(Found *found, PyObject *scope, PyObject *send, PyObject *headers) {
    int result = look_at_fields();
    if (result == GO_ON) result = read_headers(headers, &found->agent);
    if (result == GO_ON && found->agent != Py_None) {
        Py_ssize_t size = PyBytes_Size(found->agent);
        result = size > max_key ? NOT_HERE : is_short(size);
    }
    if (result != GO_ON) return result;
    PyObject *asked = call(held[ASKED_FOR], NULL);
    if (asked != Py_None) return asked ? done(asked) == GO_ON ? NOT_HERE : FAILED : FAILED;
    Py_DECREF(asked);
    found->connection = PyObject_GetAttr(send, names[N___self__]);
    if (found->connection == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        keep(&found->connection, Py_None);
    }
    result = found->connection ? look_up(scope, found->agent, &found->known) : FAILED;
    if (result != GO_ON) return result;
    if ((found->lock = call(held[LOCK], NULL)) == NULL) return FAILED;
    keep(&found->method, PyDict_GetItemWithError(scope, names[N_method]));
    if (PyErr_Occurred()) return FAILED;
    keep(&found->path, PyDict_GetItemWithError(scope, names[N_path]));
    return PyErr_Occurred() ? FAILED : GO_ON;
}

static int set_all(PyObject *request, PyObject *const *args, const Found *found) {
    PyObject *name = PyTuple_GetItem(found->known, 2);
    const struct { int name; PyObject *value; } parts[] = {
        {N__scope, args[0]}, {N__connection, found->connection}, {N__method, found->method ? found->method : held[NO_METHOD]},
        {N__path, found->path ? found->path : Py_None}, {N__block, PyTuple_GetItem(found->known, 0)},
        {N__client, PyTuple_GetItem(found->known, 1)}, {N__span_name, name}, {N__lock, found->lock}, {N__start, args[2]},
        {N_name, name}, {N__recorder, args[3]}, {N_parent_context, held[NO_CONTEXT]},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (set(request, parts[i].name, parts[i].value) < 0) return FAILED;
    return GO_ON;
}

static int fill_in(PyObject *request, PyObject *const *args, PyObject *headers) {
    Found found = {NULL};
    int result = find(&found, args[0], args[1], headers);
    if (result == GO_ON) result = set_all(request, args, &found);
    PyObject *owned[] = {found.agent, found.connection, found.known, found.lock, found.method, found.path};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) Py_XDECREF(owned[i]);
    if (result == GO_ON && PyDict_SetItem(args[0], held[SCOPE_KEY], request) < 0) result = FAILED;
    if (result == GO_ON) result = come_in(request);
    return result == GO_ON ? tell_others(request, args[3]) : result;
}

static PyObject *begin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    if (given != 5) return PyErr_Format(PyExc_TypeError, "begin takes a request, a scope, a send, a time and a recorder");
    PyObject *request = args[0], *scope = args[1];
    if (!PyObject_TypeCheck(request, (PyTypeObject *)held[MARKS]) || !PyDict_CheckExact(scope)) Py_RETURN_FALSE;
    int is_unpickled = PyDict_Contains(scope, held[SCOPE_KEY]);
    if (is_unpickled) return is_unpickled < 0 ? NULL : PyBool_FromLong(0);
    PyObject *headers = PyDict_GetItemWithError(scope, names[N_headers]);
    if (headers == NULL) return PyErr_Occurred() ? NULL : PyBool_FromLong(0);
    ((Marks *)request)->bound = 1;
    Py_INCREF(headers);
    int result = fill_in(request, args + 1, headers);
    Py_DECREF(headers);
    return result == FAILED ? NULL : PyBool_FromLong(result);
}

/* --- the description */

/* Set what an attribute is, a new reference; not here if that is None or no number. */
static int number_of(PyObject *request, int name, PyObject **number) {
    *number = PyObject_GetAttr(request, names[name]);
    if (*number == NULL) return FAILED;
    if (PyLong_CheckExact(*number)) return GO_ON;
    Py_CLEAR(*number);
    return NOT_HERE;
}

/* Return whether an attribute is this very object. */
static int is(PyObject *request, int name, PyObject *expected) {
    PyObject *found = PyObject_GetAttr(request, names[name]);
    Py_XDECREF(found);
    return found == NULL ? FAILED : found == expected;
}

/* Add a size, if it is not 0. */
static int add_size(PyObject *request, int name, PyObject *attributes, int as) {
    PyObject *size;
    int result = number_of(request, name, &size);
    if (result != GO_ON) return result;
    int any = PyObject_IsTrue(size);
    if (any < 0 || (any && PyDict_SetItem(attributes, held[as], size) < 0)) result = FAILED;
    Py_DECREF(size);
    return result;
}

/* `AsgiRequest.passed` and what no two requests share. */
static int add_all(PyObject *request, PyObject *attributes) {
    int result = is(request, N__is_plain, Py_True);
    if (result == GO_ON) result = add_size(request, N_received_bytes, attributes, REQUEST_SIZE);
    if (result == GO_ON) result = add_size(request, N__size, attributes, RESPONSE_SIZE);
    if (result != GO_ON) return result;
    PyObject *path = PyObject_GetAttr(request, names[N__path]);
    Py_ssize_t size = path && PyUnicode_CheckExact(path) ? PyUnicode_GetLength(path) : 0;
    result = path == NULL ? FAILED : size > 0 ? is_short(size) : NOT_HERE;
    PyObject *connection = result == GO_ON ? PyObject_GetAttr(request, names[N__connection]) : NULL;
    if (result == GO_ON) result = connection ? is(request, N_adopted, Py_None) : FAILED;
    if (result == GO_ON) result = done(PyObject_CallFunctionObjArgs(held[ADD_ASGI], connection, attributes, Py_True, NULL));
    if (result == GO_ON && PyDict_SetItem(attributes, held[URL_PATH], path) < 0) result = FAILED;
    Py_XDECREF(path);
    Py_XDECREF(connection);
    return result;
}

/* Set the block of the route, a new reference. */
static int find_route(PyObject *request, PyObject **block) {
    PyObject *status, *route = NULL, *key = NULL;
    int result = number_of(request, N__status, &status);
    if (result != GO_ON) return result;
    int overflow; /* the application sets the status */
    if (PyLong_AsLongAndOverflow(status, &overflow) >= SERVER_ERROR || overflow) result = NOT_HERE;
    for (int i = 0; result == GO_ON && i < 2; i++) { /* where no route has served it, a mount */
        static const int which[] = {N__route, N_mount};
        Py_XDECREF(route);
        route = PyObject_GetAttr(request, names[which[i]]);
        int any = route ? PyObject_IsTrue(route) : FAILED;
        if (any < 0) result = FAILED;
        if (any != 0) break;
    }
    if (result == GO_ON) key = PyTuple_Pack(2, route, status);
    if (result == GO_ON) {
        *block = key ? PyDict_GetItemWithError(held[ROUTES], key) : NULL;
        if (*block == NULL) result = PyErr_Occurred() ? FAILED : NOT_HERE;
        else Py_INCREF(*block);
    }
    Py_XDECREF(key);
    Py_XDECREF(route);
    Py_DECREF(status);
    return result;
}

static int describe_it(PyObject *request, PyObject **described) {
    const Marks *marks = (Marks *)request;
    if (marks->stream != Py_None || marks->disconnect != Py_None) return NOT_HERE;
    PyObject *ended, *route;
    int result = number_of(request, N__ended_at, &ended);
    if (result != GO_ON) return result;
    Py_DECREF(ended);
    result = find_route(request, &route);
    if (result != GO_ON) return result;
    PyObject *attributes = PyDict_New();
    result = attributes ? add_all(request, attributes) : FAILED;
    PyObject *block = result == GO_ON ? PyObject_GetAttr(request, names[N__block]) : NULL;
    PyObject *client = block ? PyObject_GetAttr(request, names[N__client]) : NULL;
    PyObject *blocks = client ? PyList_New(2) : NULL;
    if (blocks != NULL) {
        Py_INCREF(block);
        Py_INCREF(route);
        PyList_SetItem(blocks, 0, block);
        PyList_SetItem(blocks, 1, route);
        *described = PyTuple_Pack(3, blocks, client, attributes);
    }
    Py_XDECREF(blocks);
    Py_XDECREF(client);
    Py_XDECREF(block);
    Py_DECREF(route);
    Py_XDECREF(attributes);
    return result != GO_ON ? result : *described ? GO_ON : FAILED;
}

static PyObject *describe(PyObject *Py_UNUSED(module), PyObject *request) {
    if (!PyObject_TypeCheck(request, (PyTypeObject *)held[MARKS])) Py_RETURN_NONE;
    PyObject *described = NULL;
    int result = describe_it(request, &described);
    if (result == FAILED) return NULL;
    if (result == GO_ON) return described;
    Py_RETURN_NONE;
}

/* --- the module */

static PyMethodDef functions[] = {
    {"begin", (PyCFunction)(void (*)(void))begin, METH_FASTCALL,
     "begin(request, scope, send, started, recorder): return whether that is done."},
    {"describe", describe, METH_O, "Return what `OwnRequest.describe` does, or None where that has to do it."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *Py_UNUSED(module)) {
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_ImportError, "what others may change meanwhile is looked into as only the GIL allows");
    return -1;
#endif
    if (held[MARKS] != NULL) {
        PyErr_SetString(PyExc_ImportError, "in use by another interpreter of this process");
        return -1;
    }
    if (import_all(held, WHERE, IMPORTED) < 0) return -1;
    if (!PyType_Check(held[CONTEXT]) || !PyType_IsSubtype((PyTypeObject *)held[CONTEXT], &PyDict_Type)) {
        PyErr_SetString(PyExc_ImportError, "OpenTelemetry's context is no dict any more");
        return -1;
    }
    if (intern_all(names, WORDS, NAMED) < 0) return -1;
    if ((held[NO_METHOD] = PyUnicode_InternFromString("")) == NULL) return -1;
    if ((held[URL_PATH] = PyUnicode_InternFromString("url.path")) == NULL) return -1;
    max_key = PyLong_AsSsize_t(held[MAX_KEY]);
    return PyErr_Occurred() ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_asgi", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__asgi(void) { return PyModuleDef_Init(&definition); }
