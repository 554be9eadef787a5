# In the place of CMake's own: a CUDA that has every library, and no files.
set(CUDAToolkit_FOUND TRUE)
set(CUDAToolkit_VERSION "${STAGECRAFT_NVCC}")
string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _ "${STAGECRAFT_NVCC}")
set(CUDAToolkit_VERSION_MAJOR "${CMAKE_MATCH_1}")
set(CUDAToolkit_VERSION_MINOR "${CMAKE_MATCH_2}")
set(CUDAToolkit_ROOT_DIR "${STAGECRAFT_MOCK}/cuda")
set(CUDAToolkit_BIN_DIR "${STAGECRAFT_MOCK}/bin")
set(CUDAToolkit_INCLUDE_DIRS "${STAGECRAFT_MOCK}/cuda/include")
set(CUDAToolkit_LIBRARY_DIR "${STAGECRAFT_MOCK}/cuda/lib64")
set(CUDAToolkit_NVCC_EXECUTABLE "${STAGECRAFT_MOCK}/bin/nvcc")
foreach(name cudart cudart_static cudart_static_deps cuda_driver nvrtc nvrtc_static cublas cublasLt cublas_static
        cublasLt_static cufft cufile curand cusolver cusparse cudla cupti npp nvjpeg nvJitLink nvml nvptxcompiler_static
        nvtx3 nvToolsExt culibos toolkit)
  if(NOT TARGET CUDA::${name})
    add_library(CUDA::${name} INTERFACE IMPORTED GLOBAL)
  endif()
endforeach()
