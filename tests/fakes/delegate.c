/* A TFLite delegate as a shared library, by the ABI that `load_delegate` loads: a vendor's library without a vendor.
 *
 * The option "mode" (or FAKE_DELEGATE_MODE) says what it does:
 *   take     run every RELU, and leave the others
 *   none     take nothing
 *   refuse   return kTfLiteDelegateError from Prepare, having said why, as one does that cannot run the model
 *   error    return kTfLiteError from Prepare without a word
 *   fail     make no delegate, and say why through report_error
 *   silent   make no delegate and say nothing, as libedgetpu does where it finds no Edge TPU
 *   printed  make no delegate, and say why on standard error only
 *   unplugged   run every RELU, but fail when it comes to it
 *
 * The structures are the beginnings of those in tensorflow/lite/core/c/common.h, as far as they are needed here.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, ERROR = 1, DELEGATE_ERROR = 2, RELU = 19 };
enum { TENSOR_BYTES = 112 }; /* of TfLiteTensor in tflite-runtime 2.14 and LiteRT 2.3, on 64 bits */

typedef struct { int size; int data[]; } int_array;
typedef struct { int type; float *data; int_array *dims; float scale; int32_t zero_point; int allocation; size_t bytes; } tensor;
typedef struct { int_array *inputs, *outputs; } node;
struct context;
typedef struct {
  void *(*init)(struct context *, const char *, size_t);
  void (*free)(struct context *, void *);
  int (*prepare)(struct context *, node *);
  int (*invoke)(struct context *, node *);
  const char *(*profiling_string)(const struct context *, const node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *external, *async_kernel;
  uint64_t inplace_operator;
} registration;
struct delegate;
typedef struct context {
  size_t tensors_size;
  int (*get_execution_plan)(struct context *, int_array **);
  char *tensors;
  void *impl;
  int (*resize_tensor)(struct context *, tensor *, int_array *);
  void (*report_error)(struct context *, const char *, ...);
  int (*add_tensors)(struct context *, int, int *);
  int (*get_node_and_registration)(struct context *, int, node **, registration **);
  int (*replace_node_subsets)(struct context *, registration, const int_array *, struct delegate *);
} context;
typedef struct delegate {
  void *data;
  int (*prepare)(context *, struct delegate *);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void *opaque;
} delegate;

static char mode[32];

static int node_prepare(context *c, node *n) { return OK; }

static int node_invoke(context *c, node *n) {
  if (!strcmp(mode, "unplugged")) {
    c->report_error(c, "the device is gone");
    return ERROR;
  }
  tensor *in = (tensor *)(c->tensors + (size_t)TENSOR_BYTES * n->inputs->data[0]);
  tensor *out = (tensor *)(c->tensors + (size_t)TENSOR_BYTES * n->outputs->data[0]);
  for (size_t i = 0; i < out->bytes / sizeof(float); i++) out->data[i] = in->data[i] > 0 ? in->data[i] : 0;
  return OK;
}

static int prepare(context *c, delegate *d) {
  if (!strcmp(mode, "refuse")) {
    c->report_error(c, "cannot run %d of its operators", 2);
    return DELEGATE_ERROR;
  }
  if (!strcmp(mode, "error")) return ERROR;
  if (!strcmp(mode, "none")) return OK;
  int_array *plan;
  c->get_execution_plan(c, &plan);
  int_array *taken = malloc(sizeof(int) * (plan->size + 1));
  taken->size = 0;
  for (int i = 0; i < plan->size; i++) {
    node *n;
    registration *r;
    c->get_node_and_registration(c, plan->data[i], &n, &r);
    if (r->builtin_code == RELU) taken->data[taken->size++] = plan->data[i];
  }
  registration kernel = {.prepare = node_prepare, .invoke = node_invoke, .custom_name = "FakeDelegate", .version = 1};
  int status = c->replace_node_subsets(c, kernel, taken, d);
  free(taken);
  return status;
}

delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t options, void (*report_error)(const char *)) {
  const char *told = getenv("FAKE_DELEGATE_MODE");
  strncpy(mode, told ? told : "take", sizeof mode - 1);
  for (size_t i = 0; i < options; i++)
    if (!strcmp(keys[i], "mode")) strncpy(mode, values[i], sizeof mode - 1);
  if (!strcmp(mode, "fail")) report_error("no device answers on /dev/fake0");
  if (!strcmp(mode, "printed")) fprintf(stderr, "I starting up\nE driver.cc:17] firmware is too old\nI shutting down\n");
  if (!strcmp(mode, "fail") || !strcmp(mode, "silent") || !strcmp(mode, "printed")) return NULL;
  delegate *made = calloc(1, sizeof *made);
  made->prepare = prepare;
  return made;
}

void tflite_plugin_destroy_delegate(delegate *made) { free(made); }
