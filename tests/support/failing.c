/* Calls of the system that fail where a test wants them to: preloaded, they come before libc's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int threads_until_failure = -1; /* so many are made, and then one is not; < 0: none fails */
int attributes_fail = 0;
int failures = 0;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
        (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(
            RTLD_NEXT, "pthread_create");
    if (threads_until_failure >= 0 && threads_until_failure-- == 0) {
        failures++;
        return EAGAIN;
    }
    return next(thread, attributes, start, argument);
}

int pthread_attr_init(pthread_attr_t *attributes)
{
    int (*next)(pthread_attr_t *) =
        (int (*)(pthread_attr_t *))dlsym(RTLD_NEXT, "pthread_attr_init");
    if (attributes_fail) {
        failures++;
        return ENOMEM;
    }
    return next(attributes);
}

/* The file that $STAT names stands for /proc/self/stat. */
FILE *fopen(const char *path, const char *mode)
{
    FILE *(*next)(const char *, const char *) =
        (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    const char *instead = getenv("STAT");
    if (instead != NULL && strcmp(path, "/proc/self/stat") == 0) {
        failures++;
        return next(instead, mode);
    }
    return next(path, mode);
}
