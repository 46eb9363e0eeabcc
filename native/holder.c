/* Where the thread stands that has the GIL, as seen by a thread that has not (docs/decisions/084).
 *
 * A call that holds the GIL keeps the sampler from any look until it is over, and the request may be over with it. So what
 * waits for the GIL first looks at the holder's frames. They change meanwhile, so nothing here follows a pointer: all is
 * read through /proc/self/mem, where what is not there is an error and no fault. What was read counts if a second reading
 * finds the same instruction in every frame: then the names between them are those of code that was alive.
 *
 * Of CPython 3.11 alone, whose layout does not change any more; `fill` compares what it reads of its own thread with what
 * the interpreter says, and switches this off where they differ.
 */
#include "native.h"
#include "holder.h"

#if defined(__linux__) && defined(__LP64__)
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { TSTATE_CFRAME = 56, TSTATE_IDENT = 152, CFRAME_FRAME = 8 };
enum { FRAME_CODE = 32, FRAME_PREVIOUS = 48, FRAME_INSTRUCTION = 56, FRAME_SIZE = 64 };
enum { CODE_FLAGS = 48, CODE_FIRST_LINE = 72, CODE_FILE = 112, CODE_NAME = 120, CODE_QUALIFIED = 128, CODE_LINES = 136 };
enum { CODE_INSTRUCTIONS = 184, BYTES_SIZE = 16, BYTES_DATA = 32, TEXT_LENGTH = 16, TEXT_STATE = 32 };
enum { TEXT_DATA = 48, TEXT_WIDE_DATA = 72, MOST_FRAMES = 256, MOST_CHARS = 512, MOST_TEXT = 65536, MOST_LINES = 32768 };

typedef struct {
    uint64_t frame, code, instruction;
} Step;

typedef struct {
    uint32_t at, size; /* within the text */
    int kind;          /* bytes of a character */
} Text;

typedef struct {
    Text file, name, qualified;
    int line, flags;
} Place;

typedef struct {
    int pid; /* a forked child has what its parent's thread left here */
    int64_t at; /* CLOCK_MONOTONIC */
    uint64_t ident;
    int count;
    Step steps[MOST_FRAMES];
    Place places[MOST_FRAMES];
    uint32_t size;
    char text[MOST_TEXT];
} Seen;

static void *(*current_thread)(void); /* NULL: this is switched off */
static Seen seen;
static Step again[MOST_FRAMES];
static unsigned char lines[MOST_LINES];
static atomic_int in_use;   /* the process whose thread fills `seen`, or waits for the GIL with it */
static atomic_bool is_there; /* `seen` is of a thread that waits for the GIL: who has the GIL may read it */

static bool read_at(int memory, uint64_t from, void *to, size_t size) {
    return from > 4096 && pread(memory, to, size, (off_t)from) == (ssize_t)size;
}

static uint64_t word_of(const unsigned char *bytes, int at) {
    uint64_t word;
    memcpy(&word, bytes + at, sizeof word);
    return word;
}

/* Read the frames of a thread, the innermost first; return how many, 0 where they are unknown or too many. */
static int read_steps(int memory, uint64_t thread, Step *steps) {
    uint64_t frame;
    if (!read_at(memory, thread + TSTATE_CFRAME, &frame, 8) || !read_at(memory, frame + CFRAME_FRAME, &frame, 8)) return 0;
    int count = 0;
    for (; frame != 0 && count < MOST_FRAMES; count++) {
        unsigned char said[FRAME_SIZE];
        if (!read_at(memory, frame, said, sizeof said)) return 0;
        steps[count] = (Step){frame, word_of(said, FRAME_CODE), word_of(said, FRAME_INSTRUCTION)};
        frame = word_of(said, FRAME_PREVIOUS);
    }
    return frame == 0 ? count : 0;
}

static bool read_text(int memory, uint64_t object, Seen *into, Text *text) {
    int64_t length;
    uint32_t state;
    if (!read_at(memory, object + TEXT_LENGTH, &length, 8) || !read_at(memory, object + TEXT_STATE, &state, 4)) return false;
    int kind = (int)(state >> 2 & 7);
    bool is_compact = state >> 5 & 1, is_ascii = state >> 6 & 1;
    if (!is_compact || (kind != 1 && kind != 2 && kind != 4) || length < 0 || length > 1 << 16) return false;
    uint64_t data = object + (is_ascii ? TEXT_DATA : TEXT_WIDE_DATA);
    if (length > MOST_CHARS) { /* the end of a path says most */
        data += (uint64_t)(length - MOST_CHARS) * (uint64_t)kind;
        length = MOST_CHARS;
    }
    uint32_t size = (uint32_t)length * (uint32_t)kind;
    if (into->size + size > MOST_TEXT || (size && !read_at(memory, data, into->text + into->size, size))) return false;
    *text = (Text){into->size, size, kind};
    into->size += size;
    return true;
}

static uint32_t varint(const unsigned char *table, int size, int *at) {
    uint32_t value = 0;
    for (int shift = 0; *at < size; shift += 6) {
        unsigned char byte = table[(*at)++];
        if (shift < 30) value |= (uint32_t)(byte & 63) << shift;
        if (!(byte & 64)) break;
    }
    return value;
}

/* Return the line of an instruction by the table of locations of 3.11, -1 where it has none. */
static int line_of(const unsigned char *table, int size, int line, int64_t instruction) {
    int64_t end = 0;
    if (instruction < 0) return line;
    for (int at = 0; at < size;) {
        int kind = table[at] >> 3 & 15, units = (table[at] & 7) + 1;
        at++;
        if (kind == 13 || kind == 14) {
            uint32_t delta = varint(table, size, &at);
            line += delta & 1 ? -(int)(delta >> 1) : (int)(delta >> 1);
        } else if (kind >= 10 && kind <= 12) {
            line += kind - 10;
        }
        while (at < size && !(table[at] & 128)) at++;
        end += units;
        if (instruction < end) return kind == 15 ? -1 : line;
    }
    return -1;
}

static bool read_place(int memory, const Step *step, Seen *into, Place *place) {
    unsigned char code[CODE_INSTRUCTIONS];
    int64_t size;
    if (!read_at(memory, step->code, code, sizeof code)) return false;
    uint64_t table = word_of(code, CODE_LINES);
    if (!read_at(memory, table + BYTES_SIZE, &size, 8) || size < 0 || size > MOST_LINES) return false;
    if (size && !read_at(memory, table + BYTES_DATA, lines, (size_t)size)) return false;
    int first;
    memcpy(&first, code + CODE_FIRST_LINE, sizeof first);
    memcpy(&place->flags, code + CODE_FLAGS, sizeof place->flags);
    place->line = line_of(lines, (int)size, first, ((int64_t)step->instruction - (int64_t)(step->code + CODE_INSTRUCTIONS)) / 2);
    return read_text(memory, word_of(code, CODE_FILE), into, &place->file) &&
           read_text(memory, word_of(code, CODE_NAME), into, &place->name) &&
           read_text(memory, word_of(code, CODE_QUALIFIED), into, &place->qualified);
}

/* Return whether the thread that has the GIL is at the same instruction in every frame as in `seen`. */
static bool is_there_still(int memory, void *thread) {
    return current_thread() == thread && read_steps(memory, (uint64_t)(uintptr_t)thread, again) == seen.count &&
           memcmp(seen.steps, again, (size_t)seen.count * sizeof *again) == 0;
}

/* Read where a thread stands into `seen`; return whether it stood there all the while. */
static bool read_thread(int memory, void *thread) {
    uint64_t address = (uint64_t)(uintptr_t)thread;
    seen.count = read_steps(memory, address, seen.steps);
    seen.size = 0;
    if (seen.count == 0 || !is_there_still(memory, thread)) return false; /* as nearly always where it runs Python */
    for (int i = 0; i < seen.count; i++) {
        if (i && seen.steps[i].code == seen.steps[i - 1].code && seen.steps[i].instruction == seen.steps[i - 1].instruction)
            seen.places[i] = seen.places[i - 1];
        else if (!read_place(memory, &seen.steps[i], &seen, &seen.places[i]))
            return false;
    }
    return is_there_still(memory, thread);
}

bool look_at_holder(void) {
    void *holder = current_thread ? current_thread() : NULL;
    if (holder == NULL) return false;
    int expected = atomic_load(&in_use), pid = getpid();
    if (expected == pid || !atomic_compare_exchange_strong(&in_use, &expected, pid)) return false;
    atomic_store(&is_there, false); /* of a parent */
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    seen.pid = pid;
    seen.at = clock_ns(CLOCK_MONOTONIC);
    bool is_known = memory >= 0 && read_at(memory, (uint64_t)(uintptr_t)holder + TSTATE_IDENT, &seen.ident, 8);
    if (is_known && !read_thread(memory, holder)) seen.count = 0;
    if (memory >= 0) close(memory);
    if (is_known)
        atomic_store(&is_there, true);
    else
        atomic_store(&in_use, 0);
    return is_known;
}

void forget_holder(void) {
    atomic_store(&is_there, false);
    atomic_store(&in_use, 0);
}

static PyObject *text_of(const Seen *from, const Text *text) {
    const char *bytes = from->text + text->at;
    int order = 0; /* the machine's */
    if (text->kind == 1) return PyUnicode_DecodeLatin1(bytes, text->size, "replace");
    if (text->kind == 2) return PyUnicode_DecodeUTF16(bytes, text->size, "replace", &order);
    return PyUnicode_DecodeUTF32(bytes, text->size, "replace", &order);
}

static PyObject *place_of(const Seen *from, int at) {
    const Place *one = &from->places[at];
    return Py_BuildValue("NNNiiL", text_of(from, &one->file), text_of(from, &one->name), text_of(from, &one->qualified),
                         one->flags, one->line < 0 ? 0 : one->line, (long long)from->steps[at].frame);
}

PyObject *holder_seen(void) {
    if (!atomic_load(&is_there) || seen.pid != getpid()) Py_RETURN_NONE;
    Seen *copy = malloc(sizeof *copy); /* what follows may let go of the GIL */
    if (copy == NULL) return PyErr_NoMemory();
    memcpy(copy, &seen, sizeof *copy);
    PyObject *places = PyTuple_New(copy->count);
    for (int i = 0; places != NULL && i < copy->count; i++) {
        PyObject *place = place_of(copy, i);
        if (place == NULL || PyTuple_SetItem(places, i, place) < 0) Py_CLEAR(places);
    }
    long long since = (long long)(clock_ns(CLOCK_MONOTONIC) - copy->at);
    unsigned long long ident = copy->ident;
    free(copy);
    return places == NULL ? NULL : Py_BuildValue("LKN", since, ident, places);
}

/* Return whether what is read of this thread is what the interpreter says of it. */
static int compare(int memory) {
    PyObject *frame = (PyObject *)PyEval_GetFrame();
    int at = 0, is_same = frame != NULL && read_thread(memory, PyThreadState_Get());
    Py_XINCREF(frame);
    for (; is_same && frame != NULL && frame != Py_None; at++) {
        PyObject *code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame), *names[3], *read[3];
        for (int i = 0; i < 3; i++) {
            const Text *texts[] = {&seen.places[at].file, &seen.places[at].name, &seen.places[at].qualified};
            names[i] = PyObject_GetAttrString(code, (const char *const[]){"co_filename", "co_name", "co_qualname"}[i]);
            read[i] = at < seen.count ? text_of(&seen, texts[i]) : NULL;
            is_same = is_same && names[i] && read[i] && PyObject_RichCompareBool(names[i], read[i], Py_EQ) == 1;
            Py_XDECREF(names[i]);
            Py_XDECREF(read[i]);
        }
        int line = PyFrame_GetLineNumber((PyFrameObject *)frame);
        is_same = is_same && (line < 0 ? 0 : line) == (seen.places[at].line < 0 ? 0 : seen.places[at].line);
        PyObject *outer = PyObject_GetAttrString(frame, "f_back");
        Py_DECREF(code);
        Py_DECREF(frame);
        frame = outer;
    }
    Py_XDECREF(frame);
    PyErr_Clear();
    return is_same && at == seen.count;
}

void find_holder(void) {
    static bool is_found;
    if (is_found) return;
    is_found = true;
    if (strncmp(Py_GetVersion(), "3.11.", 5) != 0) return;
    void *symbol = dlsym(RTLD_DEFAULT, "_PyThreadState_UncheckedGet");
    int memory = symbol ? open("/proc/self/mem", O_RDONLY | O_CLOEXEC) : -1;
    if (memory < 0) return;
    memcpy(&current_thread, &symbol, sizeof symbol);
    if (current_thread() != PyThreadState_Get() || !compare(memory)) current_thread = NULL;
    close(memory);
}

bool sees_holder(void) { return current_thread != NULL; }
#else
bool sees_holder(void) { return false; }
bool look_at_holder(void) { return false; }
void forget_holder(void) {}
PyObject *holder_seen(void) { Py_RETURN_NONE; }
void find_holder(void) {}
#endif
