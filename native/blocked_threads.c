/* What threads that are blocked wait in, asked of the kernel by a thread of its own, which never wants the GIL:
 * thread_cpu.py says what it does and why.
 */
#define _GNU_SOURCE
#include "native.h"

#ifdef __linux__
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 256, PATH = 64, SAID = 32, EACH_NS = 2000000, LEAST_NS = 5000000, IDLE_TIMES = 4, ALIKE = 100 };
enum { STACK = 256 * 1024, FUTEX_WAIT_V = 449, FUTEX_WAIT_2 = 455 };
enum { LEFT, NEW, KNOWN }; /* sections that are over before the sampler comes by a second time cost nothing */

/* A thread that serves requests. Only `alike` is the sampler's alone; all else is read and written by several threads. */
typedef struct {
    int thread;  /* 0: the place is free */
    int touched; /* LEFT, or whether the thread may be in a section, and since when */
    int alike;   /* samples one after the other in which it was blocked */
    uint32_t locks, others; /* samples in which it waited for another thread of the process; for anything else */
} Watched;
static Watched watched[MOST + 1]; /* the last one is nobody's */
static int is_started, asleep;

#define GET(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)
#define SET(place, value) __atomic_store_n(&(place), value, __ATOMIC_SEQ_CST)
#define COUNT(place) __atomic_add_fetch(&(place), 1, __ATOMIC_RELAXED)

static void look(Watched *one, int thread) {
    char path[PATH], said[SAID];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", thread);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, said, SAID - 1);
    if (file >= 0) close(file);
    if (size <= 0) { /* the thread has ended, or this kernel does not tell */
        SET(one->touched, LEFT);
        return;
    }
    said[size] = 0;
    char *rest;
    long call = strtol(said, &rest, 10);
    if (rest == said) { /* "running" */
        one->alike = 0;
        return;
    }
    if (call == SYS_futex || call == FUTEX_WAIT_V || call == FUTEX_WAIT_2) COUNT(one->locks);
    else COUNT(one->others);
    if (++one->alike >= ALIKE) { /* it may have nothing to do, and of a wait as long enough is known */
        one->alike = 0;
        SET(one->touched, LEFT);
    }
}

/* Look at each thread that may be in a section; return how many there were. */
static int look_at_all(void) {
    int found = 0;
    for (int i = 0; i < MOST; i++) {
        int thread = GET(watched[i].thread);
        int touched = GET(watched[i].touched), fresh = NEW;
        if (thread == 0 || touched == LEFT) continue;
        found++;
        if (touched == KNOWN) look(&watched[i], thread);
        else __atomic_compare_exchange_n(&watched[i].touched, &fresh, KNOWN, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    return found;
}

static int is_needed(void) {
    for (int i = 0; i < MOST; i++)
        if (GET(watched[i].thread) && GET(watched[i].touched)) return 1;
    return 0;
}

static void *sample(void *none) {
    prctl(PR_SET_NAME, "stagetrace-wait");
    for (int idle = 0;;) {
        int found = look_at_all();
        idle = found ? 0 : idle + 1;
        if (idle > IDLE_TIMES) {
            SET(asleep, 1);
            if (!is_needed()) syscall(SYS_futex, &asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
            SET(asleep, 0);
            idle = 0;
        }
        long pause = (long)found * EACH_NS; /* so the price of looking is a small part of a CPU, however many they are */
        struct timespec time = {0, pause > LEAST_NS ? pause : LEAST_NS};
        nanosleep(&time, NULL);
    }
    return none;
}

/* Start the sampler, once: without it nothing is seen. No signal is for it. */
static void start(void) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    if (__atomic_exchange_n(&is_started, 1, __ATOMIC_SEQ_CST) || pthread_attr_init(&attributes)) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_create(&thread, &attributes, sample, NULL);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Return a place that was claimed; `watched + MOST` of none, NULL with an exception. */
static Watched *place_of(PyObject *number) {
    long place = PyLong_AsLong(number);
    if (place == -1 && PyErr_Occurred()) return NULL;
    return watched + (place < 0 || place >= MOST ? MOST : place);
}

static PyObject *claim(PyObject *Py_UNUSED(module), PyObject *number) {
    long thread = PyLong_AsLong(number);
    if (thread == -1 && PyErr_Occurred()) return NULL;
    for (int i = 0; thread > 0 && i < MOST; i++) {
        int none = 0;
        if (GET(watched[i].thread) != 0) continue;
        SET(watched[i].touched, LEFT);
        if (__atomic_compare_exchange_n(&watched[i].thread, &none, (int)thread, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return PyLong_FromLong(i);
    }
    return PyLong_FromLong(-1);
}

static PyObject *touch(PyObject *Py_UNUSED(module), PyObject *number) {
    Watched *one = place_of(number);
    if (one == NULL) return NULL;
    if (one == watched + MOST) return PyLong_FromLong(0);
    SET(one->touched, NEW);
    if (!GET(is_started)) start();
    if (GET(asleep)) {
        SET(asleep, 0);
        syscall(SYS_futex, &asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return PyLong_FromUnsignedLongLong((uint64_t)GET(one->locks) << 32 | GET(one->others));
}

static PyObject *leave(PyObject *Py_UNUSED(module), PyObject *number) {
    Watched *one = place_of(number);
    if (one == NULL) return NULL;
    SET(one->touched, LEFT);
    Py_RETURN_NONE;
}

static PyObject *release(PyObject *Py_UNUSED(module), PyObject *number) {
    Watched *one = place_of(number);
    if (one == NULL) return NULL;
    SET(one->thread, 0);
    Py_RETURN_NONE;
}

static PyObject *forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    for (int i = 0; i < MOST; i++) watched[i] = (Watched){0};
    is_started = asleep = 0;
    Py_RETURN_NONE;
}
#endif

static PyMethodDef functions[] = {
#ifdef __linux__
    {"claim_place", claim, METH_O, "Return a place for a thread, by the kernel's number of it; -1 where there is none."},
    {"touch_place", touch, METH_O, "Let the thread of a place be looked at from now on, and return what was seen of it."},
    {"leave_place", leave, METH_O, "Let the thread of a place not be looked at until it is touched again."},
    {"release_place", release, METH_O, "Give a place back."},
    {"forget_places", forget, METH_NOARGS, "Forget all places, in a forked child."},
#endif
    {NULL, NULL, 0, NULL},
};

const Group blocked_threads_group = {"blocked_threads", functions, NULL};
