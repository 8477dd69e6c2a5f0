/* A libnvidia-ml.so.1 that answers as the real one does, with the return codes of nvml.h.
 *
 * FAKE_NVML_INIT     code of nvmlInit_v2: 9 driver not loaded, 4 no permission, 18 versions differ, 999 unknown
 * FAKE_NVML_MEMORY   code of nvmlDeviceGetMemoryInfo, FAKE_NVML_USE of nvmlDeviceGetUtilizationRates: 3 not supported
 * FAKE_NVML_GPUS     how many there are, 1 by default
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;

static int code(const char *name, int otherwise) {
  const char *told = getenv(name);
  return told ? atoi(told) : otherwise;
}

int nvmlInit_v2(void) { return code("FAKE_NVML_INIT", 0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int result) { return result == 20 ? "Insufficient Memory" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) {
  *count = code("FAKE_NVML_GPUS", 1);
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
  static char devices[8];
  *handle = devices + index;
  return code("FAKE_NVML_HANDLE", 0);
}
int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
  strncpy(name, "Fake A2000", length);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  memory->total = 6ull << 30;
  memory->used = 5ull << 30;
  memory->free = 1ull << 30;
  return code("FAKE_NVML_MEMORY", 0);
}
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *use) {
  use->gpu = 37;
  use->memory = 12;
  return code("FAKE_NVML_USE", 0);
}
/* As the real one: asked with no room it says how many there are, and 7. The second process keeps its memory to itself. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *processes) {
  if (code("FAKE_NVML_PROCESSES", 0)) return code("FAKE_NVML_PROCESSES", 0);
  if (*count < 2) {
    *count = 2;
    return 7;
  }
  *count = 2;
  processes[0] = (process_t){(unsigned int)getpid(), 300ull << 20, 0xffffffffu, 0xffffffffu};
  processes[1] = (process_t){1, ~0ull, 0xffffffffu, 0xffffffffu};
  return 0;
}
