/* A libnvidia-ml.so.1 of two GPUs for the test of the real dlopen path. Scripted by the environment:
 * STUB_INIT: what initialisation returns. STUB_LOST: the index whose handle is lost. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, IS_LOST = 15 };
typedef struct { int index; } gpu;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } process;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char bus_id[32]; } pci;

static gpu gpus[2] = {{0}, {1}};
static unsigned long long energy = 5000000000ULL;

static int number(const char *name, int otherwise) { const char *text = getenv(name); return text ? atoi(text) : otherwise; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return number("STUB_INIT", SUCCESS); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) { snprintf(text, size, "555.42.02"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, gpu **handle) {
    if ((int)index == number("STUB_LOST", -1)) return IS_LOST;
    *handle = &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetUUID(gpu *handle, char *text, unsigned int size) { snprintf(text, size, "GPU-stub-%d", handle->index); return SUCCESS; }
int nvmlDeviceGetName(gpu *handle, char *text, unsigned int size) { (void)handle; snprintf(text, size, "NVIDIA H200"); return SUCCESS; }
int nvmlDeviceGetPciInfo_v3(gpu *handle, pci *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02x:00.0", 0x9a - handle->index);
    return SUCCESS;
}
int nvmlDeviceGetMinorNumber(gpu *handle, unsigned int *minor) { *minor = (unsigned int)handle->index; return SUCCESS; }
int nvmlDeviceGetMemoryInfo_v2(gpu *handle, memory_v2 *memory) {
    (void)handle;
    memory->total = 150754820096ULL; memory->reserved = 600000000ULL; memory->used = 1234567890ULL;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(gpu *handle, utilization *rates) { rates->gpu = 90 + (unsigned int)handle->index; rates->memory = 33; return SUCCESS; }
int nvmlDeviceGetPowerUsage(gpu *handle, unsigned int *milliwatts) { (void)handle; *milliwatts = 350000; return SUCCESS; }
int nvmlDeviceGetTotalEnergyConsumption(gpu *handle, unsigned long long *millijoules) { (void)handle; *millijoules = energy += 35000; return SUCCESS; }
int nvmlDeviceGetTemperature(gpu *handle, int sensor, unsigned int *celsius) { (void)handle; (void)sensor; *celsius = 47; return SUCCESS; }
/* The first GPU has process 4711, the second none. */
int nvmlDeviceGetComputeRunningProcesses_v3(gpu *handle, unsigned int *count, process *found) {
    unsigned int room = *count;
    *count = handle->index == 0 ? 1 : 0;
    if (room < *count) return INSUFFICIENT_SIZE;
    if (*count) { memset(found, 0, sizeof *found); found->pid = 4711; }
    return SUCCESS;
}
int nvmlDeviceGetMigMode(gpu *handle, unsigned int *current, unsigned int *pending) { (void)handle; (void)current; (void)pending; return NOT_SUPPORTED; }
