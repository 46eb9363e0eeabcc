/* The end of most requests in one call: `EntryRecorder.end_in_python` of entry_recorder.py in C (docs/decisions/011).
 *
 * What it does and why is said where the reference is. Here are only requests that kept their promise, from which
 * nothing is learned, on whose span nothing was set, and whose kind has ended before. All else is left to the
 * reference, and so is what raises: up to then nothing is counted, sent or taken from the request but its identity,
 * which the reference then finds. hatch_build.py compiles this for the stable ABI of 3.10.
 */
#include "ending.h"

static int64_t max_routes, max_counted, enough, from_each, learned_after, big;
static uint64_t random_state[4]; /* entry_recorder.py seeds it, in each forked child anew */

/* `SLASpanProcessor.decided`, without the counting. */
static int judge(Ending *ending) {
    PyObject *policy = look(ending, ending->processor, N_policy);
    if (policy == NULL) return FAILED;
    if (policy == Py_None) return GO_ON;
    if ((PyObject *)Py_TYPE(policy) != held[POLICY]) return NOT_HERE;
    PyObject *found = look(ending, policy, N__found);
    if (found == NULL || !PyDict_CheckExact(found)) return found ? NOT_HERE : FAILED;
    PyObject *objective = own_too(ending, PyDict_GetItemWithError(found, ending->route));
    if (objective == NULL || objective == Py_None) return PyErr_Occurred() ? FAILED : NOT_HERE;
    int judges = is(objective, N_excludes, Py_False);
    if (judges != GO_ON) return judges;
    PyObject *within = look(ending, objective, N_within_ns), *name = look(ending, objective, N_name);
    PyObject *took = own(ending, PyLong_FromLongLong(ending->times[1] - ending->times[0]));
    if (within == NULL || name == NULL || took == NULL) return FAILED;
    int breached = PyObject_RichCompareBool(took, within, Py_GT);
    if (breached != 0) return breached < 0 ? FAILED : NOT_HERE;
    ending->verdict = own(ending, PyTuple_Pack(2, name, held[GOOD]));
    return ending->verdict ? GO_ON : FAILED;
}

/* `Learned.wants`, without the counting: go on if not. */
static int learn(Ending *ending) {
    if (ending->verdict == NULL) return GO_ON;
    PyObject *learned = look(ending, ending->processor, N_learned), *seen = look(ending, learned, N__seen);
    if (seen == NULL || !PyDict_CheckExact(seen)) return seen ? NOT_HERE : FAILED;
    PyObject *before = own_too(ending, PyDict_GetItemWithError(seen, ending->route));
    if (before == NULL) return PyErr_Occurred() ? FAILED : PyDict_Size(seen) < max_routes ? NOT_HERE : GO_ON;
    ending->seen = seen;
    ending->seen_before = PyLong_AsLongLong(before);
    if (ending->seen_before == -1 && PyErr_Occurred()) return FAILED;
    if (ending->seen_before < 2 * enough || ending->seen_before == INT64_MAX) return NOT_HERE;
    if (ending->seen_before % from_each != 0) return GO_ON;
    PyObject *wanted = look(ending, learned, N__wanted_at);
    if (wanted == NULL || !PyDict_CheckExact(wanted)) return wanted ? NOT_HERE : FAILED;
    PyObject *at = own_too(ending, PyDict_GetItemWithError(wanted, ending->route));
    int64_t last = 0;
    if (at == NULL ? PyErr_Occurred() != NULL : read_time(at, &last) < 0) return FAILED;
    /* Neither is negative, so no difference overflows. */
    return last >= 0 && ending->times[1] >= last && ending->times[1] - last < learned_after ? GO_ON : NOT_HERE;
}

/* Return random bits; 1 for 0. */
static PyObject *random_bits(PyObject *bits) {
    PyObject *number = PyObject_CallFunctionObjArgs(held[GETRANDBITS], bits, NULL);
    int any = number ? PyObject_IsTrue(number) : -1;
    if (any > 0) return number;
    Py_XDECREF(number);
    if (any == 0) Py_INCREF(held[ONE]);
    return any < 0 ? NULL : held[ONE];
}

/* Return `tuple.__new__(type, parts)`. */
static PyObject *named_tuple(PyObject *type, PyObject *parts) {
    PyObject *arguments = parts ? PyTuple_Pack(1, parts) : NULL;
    newfunc make = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *made = arguments ? make((PyTypeObject *)type, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    Py_XDECREF(parts);
    return made;
}

/* Give the request an identity, unless somebody has drawn one meanwhile. */
static int identify(Ending *ending, PyObject *identity) {
    PyObject *its = look(ending, ending->entry, N__lock);
    int taken = its ? is_locked(its) : FAILED;
    if (taken) return taken < 0 ? FAILED : NOT_HERE;
    PyObject *other = own_too(ending, ending->marks->identity);
    if (other == Py_None) {
        Py_INCREF(identity);
        ending->marks->identity = identity; /* instead of None, of which we own another by now */
        Py_DECREF(Py_None);
    }
    ending->identity = other == Py_None ? identity : other;
    return other ? GO_ON : NOT_HERE;
}

/* Draw the ids of a request that nobody has asked for them, and that has no caller who is traced. */
static int draw(Ending *ending) {
    PyObject *bound = look(ending, ending->recorder, N__bound);
    PyObject *trace_id = bound ? own(ending, random_bits(held[BITS_128])) : NULL;
    if (trace_id == NULL) return FAILED;
    if (bound != Py_None) {
        uint64_t low = PyLong_AsUnsignedLongLongMask(trace_id); /* TraceIdRatioBased.TRACE_ID_LIMIT has 64 bits */
        PyObject *number = own(ending, PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(low));
        int sampled = number ? PyObject_RichCompareBool(number, bound, Py_LT) : -1;
        if (sampled <= 0) return sampled < 0 ? FAILED : DROPPED;
    }
    PyObject *span_id = own(ending, random_bits(held[BITS_64])), *flags = own_too(ending, PyList_GetItem(held[FLAGS], 3));
    if (span_id == NULL || flags == NULL) return FAILED;
    PyObject *parts = PyTuple_Pack(6, trace_id, span_id, Py_False, flags, held[NO_STATE], Py_True);
    PyObject *context = own(ending, named_tuple(held[CONTEXT], parts));
    if (context == NULL) return FAILED;
    PyObject *identity = own(ending, named_tuple(held[IDENTITY], PyTuple_Pack(3, context, Py_None, Py_True)));
    PyObject *probability = identity ? look(ending, ending->recorder, N__probability) : NULL;
    int result = probability ? identify(ending, identity) : FAILED;
    if (result == GO_ON && probability != Py_None) {
        PyObject *before = ending->marks->probability;
        Py_INCREF(ending->marks->probability = probability);
        Py_XDECREF(before);
    }
    return result;
}

/* `EntryRecorder._drops`, for what kept its promise. */
static int sample(Ending *ending) {
    PyObject *identity = own_too(ending, ending->marks->identity);
    if (identity == Py_None) {
        PyObject *parent = look(ending, ending->entry, N_parent_context);
        int has_parent = parent ? PyObject_IsTrue(parent) : -1, draws = is(ending->recorder, N__draws, Py_True);
        if (has_parent < 0 || draws < 0) return FAILED;
        if (draws && !has_parent) {
            int result = draw(ending);
            if (result != GO_ON) return result;
            identity = ending->identity;
        } else {
            identity = look(ending, ending->entry, N_identity); /* which draws it */
        }
    }
    if (identity == NULL) return PyErr_Occurred() ? FAILED : NOT_HERE;
    ending->identity = identity;
    return is_identity(identity) && PyTuple_GetItem(identity, 2) == Py_True ? GO_ON : NOT_HERE;
}

/* `EntrySpan.describe` and `EntryRecorder._rest`. */
static int describe(Ending *ending) {
    PyObject *told = own(ending, PyObject_CallMethodObjArgs(ending->entry, names[N_describe], NULL));
    if (told == NULL) return FAILED;
    if (!PyTuple_CheckExact(told) || PyTuple_Size(told) != 3) return NOT_HERE;
    PyObject *blocks = PyTuple_GetItem(told, 0), *client = PyTuple_GetItem(told, 1);
    ending->attributes = PyTuple_GetItem(told, 2);
    if (!PyList_CheckExact(blocks) || (PyObject *)Py_TYPE(client) != held[BLOCK] || !PyDict_CheckExact(ending->attributes))
        return NOT_HERE;
    PyObject *probability = own_too(ending, ending->marks->probability);
    if (probability == NULL) return NOT_HERE;
    if (probability != Py_None && PyDict_SetItem(ending->attributes, held[PROBABILITY], probability) < 0) return FAILED;
    ending->client = look(ending, client, N_encoded);
    PyObject *rests = look(ending, ending->recorder, N__rests), *verdict = NULL;
    if (ending->client == NULL || rests == NULL) return FAILED;
    if (ending->verdict != NULL) {
        PyObject *unbroken = look(ending, ending->recorder, N__unbroken);
        if (unbroken == NULL || !PyDict_CheckExact(unbroken)) return unbroken ? NOT_HERE : FAILED;
        verdict = own_too(ending, PyDict_GetItemWithError(unbroken, ending->verdict));
        if (verdict == NULL) return PyErr_Occurred() ? FAILED : NOT_HERE;
        if (PyList_Append(blocks, verdict) < 0) return FAILED; /* the list is made anew by each `describe` */
    }
    PyObject *name = look(ending, ending->entry, N_name), *failed = look(ending, ending->entry, N_failed);
    Py_ssize_t count = PyList_Size(blocks);
    PyObject *key = name && failed ? own(ending, PyTuple_New(2 + count)) : NULL;
    if (key == NULL) return FAILED;
    for (Py_ssize_t i = 0; i < 2 + count; i++) {
        PyObject *part = i == 0 ? name : i == 1 ? failed : PyList_GetItem(blocks, i - 2);
        if (part == NULL) return FAILED; /* a finalizer has shortened the list */
        Py_INCREF(part);
        PyTuple_SetItem(key, i, part);
    }
    if (!PyDict_CheckExact(rests)) return NOT_HERE;
    ending->rest = own_too(ending, PyDict_GetItemWithError(rests, key));
    if (ending->rest == NULL) return PyErr_Occurred() ? FAILED : NOT_HERE;
    return PyBytes_Check(ending->rest) && PyBytes_Check(ending->client) ? GO_ON : NOT_HERE;
}

/* `Timeline.noted`, under its lock, and the tiling. Set how many stages there are. */
static int take_marks(Ending *ending, Tiling *tiling, int *count) {
    Marks *marks = ending->marks;
    if (marks->presumed != Py_None || marks->tiler != Py_None || marks->errands != Py_None || marks->is_unsorted)
        return NOT_HERE;
    PyObject *log = own_too(ending, marks->log), *limit = look(ending, ending->entry, N__limit);
    if (log == NULL || limit == NULL) return log ? FAILED : NOT_HERE;
    if (!PyList_CheckExact(log) || PyList_Size(log) > MAX_EVENTS || PyList_Size(log) >= PyLong_AsLong(limit))
        return PyErr_Occurred() ? FAILED : NOT_HERE;
    marks->closed = 1;
    static const int64_t no_cuts[] = {0};
    *count = tile(tiling, held, log, ending->times, no_cuts);
    return *count < 0 ? FAILED : GO_ON;
}

static int take_marks_locked(Ending *ending, Tiling *tiling, int *count) {
    PyObject *its = look(ending, ending->entry, N__lock);
    int taken = its ? lock(its, false) : FAILED;
    if (taken != GO_ON) return taken;
    int result = take_marks(ending, tiling, count);
    unlock(its);
    return result;
}

/* Draw the ids of so many spans by xoshiro256** (Blackman and Vigna, Scrambled linear pseudorandom number generators,
 * 2021): Python's generator takes longer to hand over a number of that many bits. */
static void draw_ids(uint64_t *ids, int count) {
    for (uint64_t *id = ids; id < ids + count; id++) {
        uint64_t product = random_state[1] * 5, shifted = random_state[1] << 17;
        *id = (product << 7 | product >> 57) * 9;
        random_state[2] ^= random_state[0];
        random_state[3] ^= random_state[1];
        random_state[1] ^= random_state[2];
        random_state[0] ^= random_state[3];
        random_state[2] ^= shifted;
        random_state[3] = random_state[3] << 45 | random_state[3] >> 19;
    }
}

static PyObject *seed(PyObject *Py_UNUSED(module), PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0) return NULL;
    if (size != sizeof random_state) return PyErr_Format(PyExc_ValueError, "seed takes %d bytes", (int)sizeof random_state);
    memcpy(random_state, data, sizeof random_state);
    random_state[0] |= 1; /* all zeros would stay so */
    Py_RETURN_NONE;
}

static PyObject *ids(PyObject *Py_UNUSED(module), PyObject *number) {
    uint64_t drawn[MAX_SEGMENTS];
    long left = PyLong_AsLong(number);
    if (PyErr_Occurred()) return NULL;
    if (left > PY_SSIZE_T_MAX / 8) return PyErr_NoMemory();
    PyObject *all = PyBytes_FromStringAndSize(NULL, 8 * (Py_ssize_t)(left > 0 ? left : 0));
    for (char *into = all ? PyBytes_AsString(all) : NULL; into != NULL && left > 0; left -= MAX_SEGMENTS) {
        int count = left < MAX_SEGMENTS ? (int)left : MAX_SEGMENTS;
        draw_ids(drawn, count);
        memcpy(into, drawn, 8 * (size_t)count);
        into += 8 * count;
    }
    return all;
}

/* Put all spans of the request, behind the room for the head of a queued item. */
static int encode(Ending *ending, Buffer *buffer, Tiling *tiling, int count) {
    PyObject *head = own(ending, make_head(held, PyTuple_GetItem(ending->identity, 0)));
    PyObject *mark = head ? look(ending, held[NO_MARK], N_encoded) : NULL;
    if (mark == NULL || !PyBytes_Check(mark)) return mark ? NOT_HERE : FAILED;
    const Entry entry = {ending->identity, ending->rest, ending->client, ending->attributes};
    uint64_t ids[MAX_SEGMENTS];
    buffer->size = QUEUE_HEAD;
    draw_ids(ids, count);
    if (put_stages(buffer, tiling, count, head, (const char *)ids, mark) < 0) return FAILED;
    return put_entry(buffer, tiling, count, head, ending->times, &entry) < 0 ? FAILED : GO_ON;
}

/* --- From here on nothing is left to the reference. */

/* `VerdictCounter.add`. */
static int count_verdict(Ending *ending) {
    PyObject *counter = ending->verdict ? look(ending, ending->processor, N_counter) : NULL;
    if (counter == NULL) return ending->verdict ? -1 : 0;
    PyObject *its = look(ending, counter, N__lock), *counts = look(ending, counter, N__counts);
    int waits = its && counts ? is_locked(its) : -1;
    if (waits < 0 || (waits && lock(its, true) < 0)) return -1;
    PyObject *parts[] = {PyTuple_GetItem(ending->verdict, 0), PyTuple_GetItem(ending->verdict, 1), PyTuple_GetItem(ending->route, 1)};
    PyObject *key = own(ending, PyTuple_Pack(3, parts[0], parts[1], parts[2]));
    PyObject *before = key ? own_too(ending, PyDict_GetItemWithError(counts, key)) : NULL;
    if (key != NULL && before == NULL && !PyErr_Occurred() && PyDict_Size(counts) >= max_counted) {
        key = own(ending, PyTuple_Pack(3, parts[0], parts[1], held[NO_ROUTE]));
        before = key ? own_too(ending, PyDict_GetItemWithError(counts, key)) : NULL;
    }
    PyObject *after = before ? PyNumber_Add(before, held[ONE]) : PyErr_Occurred() ? NULL : (Py_INCREF(held[ONE]), held[ONE]);
    int result = after ? PyDict_SetItem(counts, key, after) : -1;
    Py_XDECREF(after);
    if (waits) unlock(its);
    return result;
}

static int count_seen(Ending *ending) {
    if (ending->seen == NULL) return 0;
    PyObject *after = own(ending, PyLong_FromLongLong(ending->seen_before + 1));
    return after ? PyDict_SetItem(ending->seen, ending->route, after) : -1;
}

/* `Timeline.abandon`, and when it ended. */
static int abandon(Ending *ending, PyObject *end_time) {
    if (PyObject_SetAttr(ending->entry, names[N_end_time], end_time) < 0) return -1;
    ending->marks->closed = 1;
    PyObject *log = own_too(ending, ending->marks->log);
    return log ? PyList_SetSlice(log, 0, PyList_Size(log), NULL) : 0;
}

/* Return the number that a Waiting has given to a resource and our scope, which it keeps for good; 0 if it has none. */
static uint64_t group_of(Ending *ending, PyObject *waiting, PyObject *resource) {
    static PyObject *last[2]; /* owned, lest their addresses become another's */
    static uint64_t number;
    if (waiting == last[0] && resource == last[1]) return number;
    PyObject *known = look(ending, waiting, N__known);
    PyObject *ids[] = {PyLong_FromVoidPtr(resource), PyLong_FromVoidPtr(held[SCOPE])};
    PyObject *key = known && ids[0] && ids[1] ? own(ending, PyTuple_Pack(2, ids[0], ids[1])) : NULL;
    Py_XDECREF(ids[0]);
    Py_XDECREF(ids[1]);
    PyObject *group = key && PyDict_CheckExact(known) ? PyDict_GetItemWithError(known, key) : NULL;
    uint64_t found = group ? PyLong_AsUnsignedLongLong(PyTuple_GetItem(group, 0)) : 0;
    if (found == 0 || found > UINT32_MAX) return 0; /* 0: an item that is whole */
    PyObject *before[] = {last[0], last[1]};
    Py_INCREF(last[0] = waiting);
    Py_INCREF(last[1] = resource);
    number = found;
    Py_XDECREF(before[0]);
    Py_XDECREF(before[1]);
    return found;
}

/* `Waiting.add`, of a resource and scope that it knows; return how many items are not sorted in, -1 if it does not. */
static Py_ssize_t add_waiting(Ending *ending, PyObject *sender, PyObject *resource, Buffer *buffer, int count) {
    PyObject *waiting = look(ending, sender, N__waiting);
    uint64_t number = waiting ? group_of(ending, waiting, resource) : 0;
    if (number == 0) return -1;
    uint64_t head = number | (uint64_t)count << 32;
    for (int i = 0; i < 8; i++) buffer->data[i] = (char)(head >> 8 * i);
    buffer->data[8] = 0; /* no breach */
    PyObject *item = own(ending, PyBytes_FromStringAndSize(buffer->data, (Py_ssize_t)buffer->size));
    PyObject *incoming = item ? look(ending, waiting, N__incoming) : NULL;
    return incoming && call(incoming, N_append, item) == 0 ? PyObject_Size(incoming) : -1;
}

/* `EncodingSpanProcessor.put`: wake its thread where that is due. */
static int put_in(Ending *ending, PyObject *sender, PyObject *resource, Buffer *buffer, int count) {
    Py_ssize_t size = (Py_ssize_t)buffer->size - QUEUE_HEAD;
    Py_ssize_t unsorted = (PyObject *)Py_TYPE(sender) == held[SENDER] ? add_waiting(ending, sender, resource, buffer, count) : -1;
    if (unsorted >= 0) {
        PyObject *wake_at = look(ending, sender, N__wake_at);
        int started = is(sender, N__started, Py_True);
        Py_ssize_t most = wake_at ? PyLong_AsSsize_t(wake_at) : -1;
        if (started < 0 || PyErr_Occurred()) return -1;
        if (started && unsorted < most && size <= big) return 0;
        PyObject *done = PyObject_CallMethod(sender, WORDS[N_was_put], "nn", unsorted, size);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    if (PyErr_Occurred()) return -1;
    PyObject *method = look(ending, sender, N_put);
    PyObject *arguments = own(ending, Py_BuildValue("(OOy#i)", resource, held[SCOPE], buffer->data + QUEUE_HEAD, size, count));
    PyObject *named = own(ending, Py_BuildValue("{sO}", "breach", Py_False));
    PyObject *done = method && arguments && named ? own(ending, PyObject_Call(method, arguments, named)) : NULL;
    return done ? 0 : -1;
}

/* `EntryRecorder._put`. */
static int put_all(Ending *ending, Buffer *buffer, int count) {
    PyObject *resource = look(ending, look(ending, ending->recorder, N__provider), N_resource);
    PyObject *senders = resource ? look(ending, ending->recorder, N__senders) : NULL;
    Py_ssize_t number = senders ? PySequence_Size(senders) : -1;
    if (number < 0) return -1;
    for (Py_ssize_t i = 0; i < number; i++) {
        int kept = ending->count;
        PyObject *sender = own(ending, PySequence_GetItem(senders, i));
        int result = sender ? put_in(ending, sender, resource, buffer, count) : -1;
        let_go(ending, kept);
        if (result < 0) return -1;
    }
    return 0;
}

/* Do what is due once all is known; `count` spans lie in `buffer`, none of a request that is dropped. */
static int conclude(Ending *ending, PyObject *end_time, Buffer *buffer, int count) {
    if (count_verdict(ending) < 0 && said() < 0) return FAILED;
    if (count && count_seen(ending) < 0 && said() < 0) return FAILED;
    if (count && PyObject_SetAttr(ending->entry, names[N_served], ending->route) < 0 && said() < 0) return FAILED;
    if (abandon(ending, end_time) < 0 && said() < 0) return FAILED;
    if (count && put_all(ending, buffer, count) < 0 && said() < 0) return FAILED;
    return GO_ON;
}

/* --- the whole */

static int send(Ending *ending, PyObject *end_time) {
    Tiling tiling;
    tiling.events = NULL;
    Buffer buffer;
    open_buffer(&buffer);
    int count, result = take_marks_locked(ending, &tiling, &count);
    if (result == GO_ON) result = encode(ending, &buffer, &tiling, count);
    if (result == GO_ON) result = conclude(ending, end_time, &buffer, count + 1);
    close_buffer(&buffer);
    if (tiling.events != NULL) release(&tiling);
    return result;
}

static int end_it(Ending *ending, PyObject *end_time) {
    if (!PyObject_TypeCheck(ending->entry, (PyTypeObject *)held[MARKS])) return NOT_HERE;
    const Marks *marks = ending->marks = (Marks *)ending->entry;
    PyObject *start = look(ending, ending->entry, N__start);
    if (start == NULL || read_time(start, &ending->times[0]) < 0 || read_time(end_time, &ending->times[1]) < 0) return FAILED;
    if (ending->times[0] < 0) return NOT_HERE; /* else no difference of times overflows: see read_times */
    if (ending->times[1] < ending->times[0]) return NOT_HERE; /* the wall clock stepped back */
    ending->times[2] = ending->times[1];
    ending->processor = look(ending, ending->recorder, N__processor);
    int result = ending->processor ? is(ending->processor, N_has_others, Py_False) : FAILED;
    if (marks->held || marks->stream != Py_None || marks->disconnect != Py_None || marks->errands != Py_None
        || marks->tiler != Py_None) return result == FAILED ? FAILED : NOT_HERE;
    if (result == GO_ON) result = judge(ending);
    if (result == GO_ON) result = sample(ending);
    if (result == DROPPED) return conclude(ending, end_time, NULL, 0);
    if (marks->notes != Py_None || marks->added != Py_None || marks->presumed != Py_None)
        return result == FAILED ? FAILED : NOT_HERE;
    if (result == GO_ON) result = learn(ending);
    if (result == GO_ON) result = describe(ending);
    return result == GO_ON ? send(ending, end_time) : result;
}

static PyObject *end(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    if (given != 5) return PyErr_Format(PyExc_TypeError, "end takes a recorder, an entry, a time, a method and a route");
    Ending ending;
    memset(&ending, 0, offsetof(Ending, owned));
    ending.count = 0;
    ending.recorder = args[0];
    ending.entry = args[1];
    ending.route = own(&ending, PyTuple_Pack(2, args[3], args[4]));
    int result = ending.route ? end_it(&ending, args[2]) : FAILED;
    let_go(&ending, 0);
    return result == FAILED ? NULL : PyBool_FromLong(result == GO_ON);
}

/* --- the module */

static PyMethodDef functions[] = {
    {"end", (PyCFunction)(void (*)(void))end, METH_FASTCALL,
     "end(recorder, entry, end_time, method, route): return whether that is done."},
    {"ids", ids, METH_O, "Return ids of so many spans."},
    {"seed", seed, METH_O, "Begin to draw ids from these 32 bytes."},
    {NULL, NULL, 0, NULL},
};

static int read_number(int which, int64_t *number) { return read_time(held[which], number); }

static int fill(PyObject *Py_UNUSED(module)) {
#ifdef Py_GIL_DISABLED
    return fail(PyExc_ImportError, "what others may change meanwhile is looked into as only the GIL allows");
#endif
    if (held[ONE] != NULL) return fail(PyExc_ImportError, "in use by another interpreter of this process");
    if (read_held(held) < 0 || fill_tails(held) < 0) return -1;
    if (import_all(held + HELD, FROM, IMPORTED - HELD) < 0) return -1;
    if (read_number(MAX_ROUTES, &max_routes) < 0 || read_number(ENOUGH, &enough) < 0) return -1;
    if (read_number(FROM_EACH, &from_each) < 0 || read_number(LEARNED_AFTER, &learned_after) < 0) return -1;
    if (read_number(BIG, &big) < 0 || read_number(MAX_COUNTED, &max_counted) < 0) return -1;
    if (from_each < 1 || !PyList_Check(held[FLAGS])) return fail(PyExc_ImportError, "built for another release");
    if (intern_all(names, WORDS, NAMED) < 0) return -1;
    if ((held[BITS_128] = PyLong_FromLong(128)) == NULL || (held[BITS_64] = PyLong_FromLong(64)) == NULL) return -1;
    if ((held[NO_ROUTE] = PyUnicode_FromString("")) == NULL) return -1;
    return (held[ONE] = PyLong_FromLong(1)) ? 0 : -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_ending", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__ending(void) { return PyModuleDef_Init(&definition); }
