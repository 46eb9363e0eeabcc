/* An attribute as encoders write it: a key, and a value of one of four kinds. It comes from anybody (decoder_walk.c). */
#ifndef STAGETRACE_DECODER_PAIR_H
#define STAGETRACE_DECODER_PAIR_H

#include "decoder.h"
#include "wire.h"

enum { KEY = 0x0A, VALUE = 0x12 }; /* tags */

/* What a column has of the present span. */
typedef struct {
    enum { ABSENT, UNTOLD, NUMBER, TEXT } has;
    union {
        uint64_t bits; /* of an int, a double or a bool */
        struct {
            const char *text;
            size_t size;
        };
    };
    PyObject *owner; /* of text that is not the request's */
} Value;

/* An attribute that is a key and a value. */
typedef struct {
    const char *key;
    size_t key_size;
    Bytes value, end;
    bool is_short; /* with lengths of one byte */
} Pair;

/* Read a length as encoders write it. Return what follows, or NULL. */
static Bytes plain_length(Bytes at, Bytes end, size_t *size) {
    Bytes first = length(at, end, size);
    return first != NULL && (behind(at, first) == 1 || first[-1] != 0) ? first : NULL;
}

static bool read_pair(Pair *pair, Bytes at, Bytes end) {
    size_t size;
    Bytes key = at < end && *at == KEY ? plain_length(at + 1, end, &pair->key_size) : NULL;
    if (key == NULL) return false;
    Bytes tag = key + pair->key_size;
    Bytes value = tag < end && *tag == VALUE ? plain_length(tag + 1, end, &size) : NULL;
    if (value == NULL || size == 0 || size != behind(value, end)) return false;
    pair->key = (const char *)key;
    pair->value = value;
    pair->end = end;
    pair->is_short = behind(at, key) == 2 && behind(tag, value) == 2;
    return true;
}

/* Read an AnyValue that is written as protobuf does. Return false for another, and for lists, maps and bytes. */
static bool read_value(Value *value, const Pair *pair) {
    Bytes at = pair->value + 1, end = pair->end;
    uint64_t number;
    *value = (Value){.has = NUMBER};
    switch (*pair->value) {
    case STRING: {
        size_t size;
        at = plain_length(at, end, &size);
        if (at == NULL || size != behind(at, end)) return false;
        value->has = TEXT;
        value->text = (const char *)at;
        value->size = size;
        return true;
    }
    case BOOL:
        if (behind(at, end) != 1 || *at > 1) return false;
        value->bits = *at;
        return true;
    case INT: {
        Bytes after = varint(at, end, &number);
        if (after != end || (behind(at, after) > 1 && after[-1] == 0) || (behind(at, after) == 10 && after[-1] != 1))
            return false;
        value->bits = number;
        return true;
    }
    case DOUBLE:
        if (behind(at, end) != 8) return false;
        value->bits = fixed64(at);
        return true;
    default:
        return false;
    }
}

#endif
